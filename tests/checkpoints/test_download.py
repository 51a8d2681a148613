from __future__ import annotations

import json
import multiprocessing
import pickle
import re
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from servers import WEIGHTS, FileServer, Payload, assert_equal, nobody_serving, save, save_shards, serving

from cvt_dense.checkpoints.download import download
from cvt_dense.checkpoints.files import read, shard_names
from cvt_dense.errors import CheckpointError

FRAMINGS = ('length', 'chunked', 'end')


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where downloads are kept; not there yet."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'checkpoints' / 'cvt_dense'


@pytest.fixture
def web(tmp_path: Path) -> type[FileServer]:
    """A server's settings; it offers a checkpoint as ``/a.pth``."""
    return type('Web', (FileServer,), dict(files={'/a.pth': save(tmp_path / 'a.pth').read_bytes()}, asked=[]))


@pytest.fixture
def site(cache: Path, web: type[FileServer]) -> Iterator[str]:
    """The server's address; what is downloaded from it goes to the cache."""
    with serving(web) as address:
        yield address


def refusal(url: str) -> str:
    """The message with which a download fails; it names the URL, and no file of the cache."""
    with pytest.raises(CheckpointError) as error:
        download(url)
    message = str(error.value)
    assert f'checkpoint {url} ' in message
    assert '.partial' not in message
    assert '\n' not in message
    return message


def kept(cache: Path) -> list[str]:
    """Names of all that is in the cache but locks, which are empty."""
    return sorted(path.name for path in cache.rglob('*') if path.is_file() and path.suffix not in ('.lock', '.sha256'))


def remains(cache: Path) -> list[str]:
    """Names of folders that a download forgot."""
    return [path.name for path in cache.rglob('.partial-*')]


@pytest.mark.parametrize('framing', FRAMINGS)
def test_a_file_is_downloaded_once(site: str, web: type[FileServer], cache: Path, framing: str) -> None:
    web.framing = framing
    path = download(f'{site}/a.pth')
    assert path.is_relative_to(cache)
    assert_equal(read(path))
    assert download(f'{site}/a.pth') == path
    assert web.asked == ['GET /a.pth']
    assert (kept(cache), remains(cache)) == (['a.pth'], [])


def test_what_was_had_before_needs_neither_a_server_nor_a_lock(cache: Path, web: type[FileServer]) -> None:
    with serving(web) as site:
        path = download(f'{site}/a.pth')
    lock = path.with_name('.a.pth.lock')
    lock.unlink(missing_ok=True)
    lock.mkdir()  # as good as a cache that cannot be written to
    assert download(f'{site}/a.pth') == path


def test_files_of_one_name_from_several_places_are_kept_apart(
    site: str, web: type[FileServer], cache: Path, tmp_path: Path
) -> None:
    paths = ('/a.pth', '/b/a.pth', '/b/c/a.pth', '/a.pth?version=1', '/a.pth?version=2', '/b%2Fa.pth/a.pth')
    for number, path in enumerate(paths):
        web.files[path] = save(tmp_path / 'a.pth', {'norm.bias': torch.full((1,), float(number))}).read_bytes()
    downloaded = [download(site + path) for path in paths]
    assert [read(path)['norm.bias'].item() for path in downloaded] == list(range(len(paths)))
    assert {path.name for path in downloaded} == {'a.pth'}
    assert len(web.asked) == len(paths)


def test_what_follows_the_number_sign_makes_no_other_file(site: str, web: type[FileServer], cache: Path) -> None:
    assert download(f'{site}/a.pth#weights') == download(f'{site}/a.pth')
    assert web.asked == ['GET /a.pth']


@pytest.mark.parametrize(
    ('requested', 'name'),
    [
        ('a%20b.pth', 'a b.pth'),
        ('%C3%A4.safetensors', 'ä.safetensors'),
        ('%61.pth', 'a.pth'),
        ('a%3Fb.pth', 'a?b.pth'),
        ('a.safetensors?download=true', 'a.safetensors'),
        ('weights', 'weights'),
    ],
)
def test_a_file_is_kept_under_its_decoded_name(
    site: str, web: type[FileServer], cache: Path, tmp_path: Path, requested: str, name: str
) -> None:
    web.files[f'/x/{requested}'] = save(tmp_path / f'a{Path(name).suffix}').read_bytes()
    path = download(f'{site}/x/{requested}')
    assert path.name == name
    assert_equal(read(path))


@pytest.mark.parametrize(
    'path', ['', '/', '/..', '/a/%2E%2E', '/..%2F..%2Fevil.pth', '/%2Fetc%2Fevil.pth', '/a%2Fb.pth']
)
def test_a_url_without_the_name_of_a_file_is_refused(site: str, web: type[FileServer], cache: Path, path: str) -> None:
    web.files[path] = web.files['/a.pth']
    assert refusal(site + path).endswith(' names no file')
    assert web.asked == []
    assert kept(cache.parents[2]) == ['a.pth']  # the server's own


@pytest.mark.parametrize(
    'url',
    [
        'http://[::1/a.pth',
        'http://127.0.0.1:port/a.pth',
        'http://127.0.0.1:1/ä.pth',
        'http://127.0.0.1:1/a b.pth',
        'http:///a.pth',
        'http://127.0.0.1:1/a%00.pth',
        f'http://127.0.0.1:1/{"a" * 300}.pth',
        'http://' + 'a' * 70 + '/a.pth',
    ],
    ids=lambda url: url[:40],
)
def test_a_malformed_url_cannot_be_downloaded(cache: Path, url: str) -> None:
    assert 'could not be downloaded' in refusal(url)
    assert (kept(cache), remains(cache)) == ([], [])


def _fails_then_works(site: str, web: type[FileServer], cache: Path) -> str:
    """The message of a download that fails; it leaves nothing behind, and the next one, of a sound server, works."""
    message = refusal(f'{site}/a.pth')
    assert (kept(cache), remains(cache)) == ([], [])
    web.status, web.framing, web.broken = None, 'length', False
    assert_equal(read(download(f'{site}/a.pth')))
    return message


@pytest.mark.parametrize(
    'status', [HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR]
)
def test_a_server_that_denies_the_file_is_told_of(
    site: str, web: type[FileServer], cache: Path, status: HTTPStatus
) -> None:
    web.status = status
    message = _fails_then_works(site, web, cache)
    assert f'could not be downloaded (HTTP Error {status.value}: {status.phrase})' in message
    assert 'give a local copy: --cfg-options model.backbone.init_cfg.checkpoint=PATH' in message


def test_a_refused_connection_is_told_of(cache: Path) -> None:
    with nobody_serving() as nowhere:
        message = refusal(f'{nowhere}/a.pth')
    assert 'could not be downloaded' in message
    assert 'Connection refused' in message
    assert (kept(cache), remains(cache)) == ([], [])


@pytest.mark.parametrize(
    ('framing', 'what'),
    [
        ('length', r'could not be downloaded \(the connection ended after \d+ of \d+ bytes\)'),
        ('chunked', r'could not be downloaded \(IncompleteRead'),
        ('end', 'is damaged, incomplete or not a checkpoint'),  # nothing else gives it away
    ],
)
def test_a_connection_lost_in_the_middle_leaves_nothing(
    site: str, web: type[FileServer], cache: Path, framing: str, what: str
) -> None:
    web.framing, web.broken = framing, True
    message = _fails_then_works(site, web, cache)
    assert re.search(what, message)


@pytest.mark.parametrize('body', [b'', b'<!DOCTYPE html>\n<html>Sign in</html>\n', b'{"error": "gone"}'])
def test_what_is_no_checkpoint_is_not_kept(site: str, web: type[FileServer], cache: Path, body: bytes) -> None:
    sound = web.files['/a.pth']
    web.files['/a.pth'] = body
    message = refusal(f'{site}/a.pth')
    assert 'is damaged, incomplete or not a checkpoint' in message or 'was refused: it is damaged' in message
    assert (kept(cache), remains(cache)) == ([], [])
    web.files['/a.pth'] = sound
    assert_equal(read(download(f'{site}/a.pth')))


def test_code_in_a_download_is_neither_run_nor_kept(
    site: str, web: type[FileServer], cache: Path, tmp_path: Path
) -> None:
    web.files['/a.pth'] = pickle.dumps(Payload(tmp_path / 'created'))
    assert 'was refused: it is damaged, or holds more than plain weights' in refusal(f'{site}/a.pth')
    assert not (tmp_path / 'created').exists()
    assert (kept(cache), remains(cache)) == ([], [])


@pytest.fixture
def sharded(web: type[FileServer], tmp_path: Path) -> Path:
    """The index of a sharded checkpoint that the server offers below ``/sharded/``, each file as it is asked for."""
    folder = tmp_path / 'sharded'
    folder.mkdir()
    index = save_shards(folder, '.safetensors')
    web.files |= {f'/sharded/{path.name}': path.read_bytes() for path in folder.iterdir()}
    return index


@pytest.mark.parametrize('query', ['', '?download=true'])
def test_all_shards_that_an_index_lists_are_downloaded_once(
    site: str, web: type[FileServer], sharded: Path, query: str
) -> None:
    web.files = {path + query: body for path, body in web.files.items()}
    path = download(f'{site}/sharded/{sharded.name}{query}')
    assert_equal(read(path))
    assert download(f'{site}/sharded/{sharded.name}{query}') == path
    assert web.asked == [f'GET /sharded/{name}{query}' for name in (sharded.name, *shard_names(sharded))]


def test_an_index_is_kept_once_all_its_shards_are(site: str, web: type[FileServer], cache: Path, sharded: Path) -> None:
    url = f'{site}/sharded/{sharded.name}'
    first, second = shard_names(sharded)
    lost = web.files.pop(f'/sharded/{second}')
    with pytest.raises(CheckpointError) as error:
        download(url)
    assert f'{site}/sharded/{second} could not be downloaded (HTTP Error 404' in str(error.value)
    assert (kept(cache), remains(cache)) == ([first], [])
    # It was the index that was wrong: the corrected one counts.
    web.files[f'/sharded/other-{second}'] = lost
    web.files[f'/sharded/{sharded.name}'] = sharded.read_text().replace(second, f'other-{second}').encode()
    assert_equal(read(download(url)))
    assert web.asked.count(f'GET /sharded/{first}') == 1


@pytest.mark.parametrize('name', ['a b.pth', 'ä.pth', 'a?b#c.pth', 'a%20b.pth', 'file:a.pth', 'http:a.pth'])
def test_a_shard_is_asked_for_by_its_encoded_name(
    site: str, web: type[FileServer], cache: Path, tmp_path: Path, name: str
) -> None:
    web.files['/index.json'] = json.dumps({'weight_map': dict.fromkeys(WEIGHTS, name)}).encode()
    web.files[f'/{quote(name)}'] = web.files['/a.pth']
    path = download(f'{site}/index.json')
    assert shard_names(path) == [name]
    assert_equal(read(path))


@pytest.mark.parametrize(
    ('index', 'what'),
    [
        ('<html>Sign in</html>', 'is not an index of shards'),
        ('{"weight_map": {"norm.bias": "../a.pth"}}', "lists '../a.pth', which is not a file beside it"),
        ('{"weight_map": {"norm.bias": ""}}', "lists '', which is not a file beside it"),
        ('{"weight_map": {"norm.bias": "index.json"}}', "lists 'index.json', which is not a file beside it"),
    ],
)
def test_a_wrong_index_is_not_kept(site: str, web: type[FileServer], cache: Path, index: str, what: str) -> None:
    web.files['/x/index.json'] = index.encode()
    assert what in refusal(f'{site}/x/index.json')
    assert web.asked == ['GET /x/index.json']
    assert (kept(cache), remains(cache)) == ([], [])


def test_of_several_processes_one_downloads(cache: Path, web: type[FileServer], tmp_path: Path) -> None:
    another = threading.Event()

    class Slow(web):
        """Answers once it is asked again, which should not happen, or after a while."""

        def answer(self) -> None:
            if self.asked:
                another.set()
            self.asked.append(f'{self.command} {self.path}')
            another.wait(0.5)
            self.reply(HTTPStatus.OK, self.files[self.path])

    context = multiprocessing.get_context('forkserver')  # one process that imports torch, and cheap copies of it
    context.set_forkserver_preload(['cvt_dense.checkpoints.download'])
    with serving(Slow) as site, context.Pool(4, torch.hub.set_dir, (str(tmp_path / 'hub'),)) as pool:
        paths = pool.map(download, [f'{site}/a.pth'] * 4, chunksize=1)
    (path,) = set(paths)
    assert_equal(read(path))
    assert path.is_relative_to(cache)
    assert web.asked == ['GET /a.pth']


@pytest.mark.parametrize('taken', ['hub', 'hub/checkpoints', 'hub/checkpoints/cvt_dense'])
def test_a_cache_that_cannot_be_made_is_told_of(site: str, web: type[FileServer], tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).touch()
    message = refusal(f'{site}/a.pth')
    assert 'could not be downloaded' in message
    assert taken in message
    assert web.asked == []
