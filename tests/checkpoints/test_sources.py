from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import LocalEntryNotFoundError
from servers import FileServer, assert_equal, nobody_serving, save, save_shards, serving

from cvt_dense.checkpoints import PUBLISHED, sources
from cvt_dense.checkpoints.files import WEIGHT_FILES, read, shard_names
from cvt_dense.checkpoints.published import SHIPPED
from cvt_dense.checkpoints.sources import LOCAL_FOLDER, fetch
from cvt_dense.errors import CheckpointError

NAME = 'cvt-13-384x384-in22k'
AUTHORS_NAME = 'CvT-13-384x384-IN-22k.pth'
REPO = 'microsoft/cvt-13-384-22k'


@pytest.fixture(autouse=True)
def _no_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOCAL_FOLDER, raising=False)


def refusal(checkpoint: str) -> str:
    """The message with which a checkpoint is not found."""
    with pytest.raises(CheckpointError) as error:
        fetch(checkpoint)
    assert '\n' not in str(error.value)
    return str(error.value)


def save_as(folder: Path, name: str) -> None:
    """Write WEIGHTS below the name of one of WEIGHT_FILES, with shards if it is an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith('.index.json'):
        save_shards(folder, Path(name.removesuffix('.index.json')).suffix)
    else:
        save(folder / name)


def test_a_file_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'a.pth'
    path.touch()
    assert fetch(str(path)) == path
    monkeypatch.setenv('HOME', str(tmp_path))
    assert fetch('~/a.pth') == path
    monkeypatch.chdir(tmp_path)
    assert fetch('a.pth') == Path('a.pth')


@pytest.mark.parametrize(
    'name',
    [
        'nowhere/weights.pth',
        'cvt-14',
        '',
        'CVT-13-224x224-IN1K',
        'CvT-13-384x384-IN-22k',
        '~nobody-of-that-name/a.pth',
        'a' * 300,
        'a\0b',
        'ftp://127.0.0.1/a.pth',
    ],
)
def test_what_is_neither_a_file_nor_a_name_lists_the_names(name: str) -> None:
    message = refusal(name)
    assert repr(name) in message
    assert all(known in message for known in [*PUBLISHED, *SHIPPED])


@pytest.mark.parametrize('name', SHIPPED)
def test_what_comes_with_the_package_is_found_by_name(name: str) -> None:
    assert fetch(name) == SHIPPED[name]


@pytest.mark.parametrize('name', WEIGHT_FILES)
def test_in_a_folder_the_weights_are_found(tmp_path: Path, name: str) -> None:
    save_as(tmp_path, name)
    (tmp_path / 'config.json').write_text('{}')
    assert fetch(str(tmp_path)) == tmp_path / name
    assert_equal(read(fetch(f'{tmp_path}/')))


@pytest.mark.parametrize('best', range(len(WEIGHT_FILES)))
def test_of_several_weights_in_a_folder_the_best_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    for name in WEIGHT_FILES[best:]:
        save_as(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    assert fetch('.') == Path(WEIGHT_FILES[best])


def test_a_model_that_transformers_saved_in_shards_is_found(tmp_path: Path) -> None:
    transformers = pytest.importorskip('transformers')
    config = transformers.CvtConfig(embed_dim=[16, 48, 96], num_heads=[1, 3, 6], depth=[1, 2, 3])
    model = transformers.CvtModel(config)
    model.save_pretrained(tmp_path, max_shard_size='200KB')
    path = fetch(str(tmp_path))
    assert path.name == 'model.safetensors.index.json'
    assert len(shard_names(path)) > 1
    tensors = read(path)
    assert all(torch.equal(tensors[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize('other', [None, 'config.json', 'model.pth'])
def test_a_folder_without_weights_says_what_could_be_in_it(tmp_path: Path, other: str | None) -> None:
    (tmp_path / 'pytorch_model.bin').mkdir()  # a file it must be
    if other:
        (tmp_path / other).touch()
    assert refusal(str(tmp_path)) == (
        f'checkpoint {tmp_path} is a folder with no model.safetensors, model.safetensors.index.json, '
        f'pytorch_model.bin in it'
    )


def _ask_nobody(repo: str, filename: str, revision: str | None = None) -> str:
    pytest.fail(f'the hub was asked for {filename} of {repo}')


@pytest.mark.parametrize('asked', [NAME, AUTHORS_NAME])
@pytest.mark.parametrize('kept', [AUTHORS_NAME, *(f'{NAME}{suffix}' for suffix in ('.safetensors', '.pth', '.bin'))])
def test_a_published_checkpoint_is_looked_for_in_the_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, kept: str
) -> None:
    monkeypatch.setattr(sources, 'hf_hub_download', _ask_nobody)
    monkeypatch.setenv(LOCAL_FOLDER, str(tmp_path))
    save(tmp_path / kept)
    assert fetch(asked) == tmp_path / kept


def test_the_local_folder_may_be_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, 'hf_hub_download', _ask_nobody)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv(LOCAL_FOLDER, '~/weights')
    (tmp_path / 'weights').mkdir()
    save(tmp_path / 'weights' / AUTHORS_NAME)
    assert fetch(NAME) == tmp_path / 'weights' / AUTHORS_NAME


def test_in_the_local_folder_the_authors_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, 'hf_hub_download', _ask_nobody)
    monkeypatch.setenv(LOCAL_FOLDER, str(tmp_path))
    names = [AUTHORS_NAME, f'{NAME}.safetensors', f'{NAME}.pth', f'{NAME}.bin']
    for name in names:
        save(tmp_path / name)
    for name in names:
        assert fetch(NAME) == tmp_path / name
        (tmp_path / name).unlink()


@pytest.mark.parametrize('missing', ['nowhere', 'a.pth', '~nobody-of-that-name', 'a' * 300])
def test_a_local_folder_that_is_none_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(sources, 'hf_hub_download', _ask_nobody)
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'a.pth')
    monkeypatch.setenv(LOCAL_FOLDER, missing)
    assert refusal(NAME) == f'{LOCAL_FOLDER} is set to {missing}, which is not a folder'
    assert fetch('a.pth') == Path('a.pth')  # which needs no such folder


@pytest.mark.parametrize('asked', [NAME, AUTHORS_NAME])
@pytest.mark.parametrize('folder', [None, '', '.'])
def test_a_published_checkpoint_that_is_not_local_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, folder: str | None
) -> None:
    requests = []

    def download(repo: str, filename: str, revision: str | None = None) -> str:
        requests.append((repo, filename, revision))
        return str(tmp_path / 'pytorch_model.bin')

    monkeypatch.setattr(sources, 'hf_hub_download', download)
    monkeypatch.chdir(tmp_path)
    if folder is not None:
        monkeypatch.setenv(LOCAL_FOLDER, folder)
    (tmp_path / 'cvt-13-224x224-in1k.pth').touch()  # another one
    assert fetch(asked) == tmp_path / 'pytorch_model.bin'
    assert requests == [(REPO, 'pytorch_model.bin', None)]


def _names_both_ways_out(message: str) -> bool:
    parts = (NAME, REPO, AUTHORS_NAME, 'model.backbone.init_cfg.checkpoint=PATH', 'model.backbone.init_cfg=None')
    return all(part in message for part in parts)


@pytest.mark.parametrize(
    'error',
    [LocalEntryNotFoundError('offline\nsecond line'), ConnectionResetError('reset\nsecond line'), OSError()],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_download_says_both_ways_out(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo: str, filename: str, revision: str | None = None) -> str:
        raise error

    monkeypatch.setattr(sources, 'hf_hub_download', download)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    message = refusal(NAME)
    assert _names_both_ways_out(message)
    assert (str(error).splitlines() or ['OSError'])[0] in message
    assert 'second line' not in message


class _Hub(FileServer):
    """A Hugging Face Hub.

    Attributes:
        files: The files, as ``owner/name@revision/file``, which is how requests are noted, too.
        token: What a request must be authorized with, if anything.
        address: Where it is.
    """

    token: str | None = None
    address: str

    def answer(self) -> None:
        repo, revision, file = map(unquote, re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', self.path).groups())
        name = f'{repo}@{revision}/{file}'
        self.asked.append(f'{self.command} {name}')
        headers = {'X-Repo-Commit': hashlib.sha1(f'{repo}@{revision}'.encode()).hexdigest()}
        if self.status is not None:
            self.reply(self.status, headers=headers)
        elif self.token is not None and self.headers['Authorization'] != f'Bearer {self.token}':
            self.reply(HTTPStatus.UNAUTHORIZED, headers={'X-Error-Message': 'Access is restricted'})
        elif name in self.files:
            etag = hashlib.sha1(self.files[name]).hexdigest()
            self.reply(HTTPStatus.OK, self.files[name], headers | {'ETag': f'"{etag}"'})
        elif any(known.startswith(f'{repo}@{revision}/') for known in self.files):
            self.reply(HTTPStatus.NOT_FOUND, headers=headers | {'X-Error-Code': 'EntryNotFound'})
        elif any(known.startswith(f'{repo}@') for known in self.files):
            self.reply(HTTPStatus.NOT_FOUND, headers={'X-Error-Code': 'RevisionNotFound'})
        else:
            self.reply(HTTPStatus.NOT_FOUND, headers={'X-Error-Code': 'RepoNotFound'})

    @classmethod
    def offer(cls, repo: str, folder: Path) -> None:
        """Offer all files of a folder in ``owner/name@revision``."""
        cls.files |= {f'{repo}/{path.name}': path.read_bytes() for path in folder.iterdir()}


def _use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    template = address + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', address)
    monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    """The Hub that huggingface_hub asks, with the weights of NAME; the cache is empty, and nobody is logged in."""
    content = save(tmp_path / 'weights.bin').read_bytes()
    handler = type('Hub', (_Hub,), dict(files={f'{REPO}@main/pytorch_model.bin': content}, asked=[]))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.delenv('HF_TOKEN', raising=False)
    monkeypatch.delenv('HUGGING_FACE_HUB_TOKEN', raising=False)
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between attempts
    with serving(handler) as handler.address:
        _use_hub(monkeypatch, handler.address)
        yield handler


@pytest.fixture(params=WEIGHT_FILES)
def repo(hub: type[_Hub], tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A repository of the Hub that holds its weights in one of the ways there are; the value is its address."""
    save_as(tmp_path / 'repo', request.param)
    (tmp_path / 'repo' / 'config.json').write_text('{}')
    hub.offer('a/b@main', tmp_path / 'repo')
    return 'hf://a/b'


def test_a_published_checkpoint_is_downloaded_and_kept(hub: type[_Hub]) -> None:
    assert_equal(read(fetch(NAME)))
    hub.status = HTTPStatus.NOT_FOUND
    assert_equal(read(fetch(NAME)))  # from the cache
    assert hub.asked.count(f'GET {REPO}@main/pytorch_model.bin') == 1


@pytest.mark.parametrize('status', [HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE])
def test_a_hub_that_denies_the_file_says_both_ways_out(hub: type[_Hub], status: HTTPStatus) -> None:
    hub.status = status
    assert _names_both_ways_out(refusal(NAME))


@pytest.mark.parametrize('files', [{}, {f'{REPO}@main/config.json': b'{}'}, {f'{REPO}@other/pytorch_model.bin': b''}])
def test_a_hub_without_the_file_says_both_ways_out(hub: type[_Hub], files: dict[str, bytes]) -> None:
    hub.files = files
    assert _names_both_ways_out(refusal(NAME))


@pytest.mark.parametrize(
    ('address', 'file'),
    [
        ('hf://a/b', 'a/b@main/model.safetensors'),
        ('hf://a/b/', 'a/b@main/model.safetensors'),
        ('hf://a/b@v1.0', 'a/b@v1.0/model.safetensors'),
        ('hf://a/b@v1.0/', 'a/b@v1.0/model.safetensors'),
        ('hf://a/b@refs%2Fpr%2F1', 'a/b@refs/pr/1/model.safetensors'),
        ('hf://a/b/other.safetensors', 'a/b@main/other.safetensors'),
        ('hf://a/b/sub/folder/other.safetensors', 'a/b@main/sub/folder/other.safetensors'),
        ('hf://a/b@v1.0/sub/other.safetensors', 'a/b@v1.0/sub/other.safetensors'),
        ('hf://a/b@refs%2Fpr%2F1/sub/other.safetensors', 'a/b@refs/pr/1/sub/other.safetensors'),
        ('hf://a-b_c/d.e-1/x@y.safetensors', 'a-b_c/d.e-1@main/x@y.safetensors'),
    ],
)
def test_an_address_says_repository_revision_and_file(hub: type[_Hub], tmp_path: Path, address: str, file: str) -> None:
    hub.files[file] = save(tmp_path / 'a.safetensors').read_bytes()
    assert_equal(read(fetch(address)))
    assert hub.asked == [f'HEAD {file}', f'GET {file}']


@pytest.mark.parametrize(
    'address',
    [
        'hf://',
        'hf://x',
        'hf:///x',
        'hf://x/',
        'hf://a/b@',
        'hf://a/b@/file',
        'hf://a@v1/b',
        'hf://a/b//file',
        'hf://@v1',
    ],
)
def test_an_address_of_another_form_is_refused(hub: type[_Hub], address: str) -> None:
    assert refusal(address) == f'checkpoint {address!r} is not of the form hf://owner/name[@revision][/file]'
    assert hub.asked == []


@pytest.mark.parametrize('address', ['hf://a b/c', 'hf://a/b/../../weights.bin', 'hf://-/--', 'hf://a/b@..%2F..'])
def test_an_address_that_the_hub_cannot_have_is_refused(hub: type[_Hub], address: str) -> None:
    assert address in refusal(address)


def test_weights_of_every_kind_are_found_in_a_repository(hub: type[_Hub], repo: str, tmp_path: Path) -> None:
    path = fetch(repo)
    assert_equal(read(path))
    assert path.read_bytes() == (tmp_path / 'repo' / path.name).read_bytes()


@pytest.mark.parametrize('best', range(len(WEIGHT_FILES)))
def test_of_several_weights_in_a_repository_the_best_are_taken(hub: type[_Hub], tmp_path: Path, best: int) -> None:
    for name in WEIGHT_FILES[best:]:
        save_as(tmp_path / 'repo', name)
    hub.offer('a/b@main', tmp_path / 'repo')
    path = fetch('hf://a/b')
    assert path.name == WEIGHT_FILES[best]
    got = [request.rpartition('/')[2] for request in hub.asked if request.startswith('GET')]
    assert got == [path.name, *(shard_names(path) if path.suffix == '.json' else [])]


@pytest.mark.parametrize('address', ['hf://a/b@v1', 'hf://a/b@v1/sub/model.safetensors.index.json'])
def test_shards_come_from_the_folder_and_revision_of_their_index(hub: type[_Hub], tmp_path: Path, address: str) -> None:
    save_as(tmp_path / 'repo', 'model.safetensors.index.json')
    where = 'a/b@v1/sub' if 'sub' in address else 'a/b@v1'
    hub.offer(where, tmp_path / 'repo')
    hub.files['a/b@main/config.json'] = b'{}'
    path = fetch(address)
    assert_equal(read(path))
    assert {f'GET {where}/{name}' for name in shard_names(path)} < set(hub.asked)


def test_an_index_cannot_reach_out_of_its_repository(hub: type[_Hub]) -> None:
    hub.files['a/b@main/model.safetensors.index.json'] = b'{"weight_map": {"norm.bias": "../../x.bin"}}'
    assert "lists '../../x.bin', which is not a file beside it" in refusal('hf://a/b')
    assert not any('x.bin' in request for request in hub.asked)


def test_a_repository_without_weights_says_what_could_be_in_it(hub: type[_Hub]) -> None:
    hub.files['a/b@main/config.json'] = b'{}'
    message = refusal('hf://a/b')
    assert message.startswith(
        "checkpoint 'hf://a/b': a/b on the Hugging Face Hub has no model.safetensors or model.safetensors.index.json "
        'or pytorch_model.bin or pytorch_model.bin.index.json. '
    )
    assert 'has no other.bin. ' in refusal('hf://a/b/other.bin')


@pytest.mark.parametrize('address', ['hf://nobody/nothing', f'hf://{REPO}@nowhere'])
def test_a_repository_or_revision_that_is_not_there_is_told_of(hub: type[_Hub], address: str) -> None:
    message = refusal(address)
    assert message.startswith(f'checkpoint {address!r} could not be downloaded from ')
    assert '404' in message


def test_a_repository_that_asks_for_a_token_gets_it(
    hub: type[_Hub], repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = 'hf_right'
    assert '401' in refusal(repo)
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    assert '401' in refusal(repo)
    monkeypatch.setenv('HF_TOKEN', 'hf_right')
    assert_equal(read(fetch(repo)))


def test_a_token_that_was_stored_counts(hub: type[_Hub], tmp_path: Path) -> None:
    hub.token = 'hf_stored'
    (tmp_path / 'token').write_text('hf_stored\n')
    assert_equal(read(fetch(NAME)))


def _go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


def test_half_a_download_is_never_used(hub: type[_Hub], repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken = True
    assert repr(repo) in refusal(repo)
    with monkeypatch.context() as context:
        _go_offline(context)
        assert repr(repo) in refusal(repo)
    hub.broken = False
    assert_equal(read(fetch(repo)))


def test_a_published_checkpoint_that_breaks_off_says_both_ways_out(hub: type[_Hub]) -> None:
    hub.broken = True
    assert _names_both_ways_out(refusal(NAME))


def test_an_index_without_one_of_its_shards_is_never_used(
    hub: type[_Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_as(tmp_path / 'repo', 'pytorch_model.bin.index.json')
    hub.offer('a/b@main', tmp_path / 'repo')
    lost = f'a/b@main/{shard_names(tmp_path / "repo" / "pytorch_model.bin.index.json")[1]}'
    content = hub.files.pop(lost)
    assert 'could not be downloaded' in refusal('hf://a/b')
    with monkeypatch.context() as context:
        _go_offline(context)
        assert 'could not be downloaded' in refusal('hf://a/b')
    hub.files[lost] = content
    assert_equal(read(fetch('hf://a/b')))


def test_offline_what_was_had_before_is_used(hub: type[_Hub], repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(repo)
    hub.asked.clear()
    _go_offline(monkeypatch)
    assert fetch(repo) == path
    assert_equal(read(path))
    assert hub.asked == []


def test_without_network_what_was_had_before_is_used(
    hub: type[_Hub], repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(repo)
    with nobody_serving() as nowhere:
        _use_hub(monkeypatch, nowhere)
        assert fetch(repo) == path
        assert_equal(read(path))
        assert 'hf://a/b@v1' in refusal('hf://a/b@v1')  # which is another
        assert _names_both_ways_out(refusal(NAME))


_FETCH = """
import sys
from cvt_dense.errors import CheckpointError
from cvt_dense.checkpoints.files import read
from cvt_dense.checkpoints.sources import fetch
for checkpoint in sys.argv[1:]:
    try:
        print('read', *sorted(read(fetch(checkpoint))))
    except CheckpointError as error:
        print(error)
"""


def _fetch_elsewhere(*checkpoints: str, **environment: str) -> list[str]:
    """What another process, set up by its environment alone, says of each checkpoint."""
    ours = ('HF_', 'HUGGING', LOCAL_FOLDER)
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | environment
    command = [sys.executable, '-c', _FETCH, *checkpoints]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_environment_names_hub_token_and_cache(hub: type[_Hub], tmp_path: Path) -> None:
    save_as(tmp_path / 'repo', 'model.safetensors.index.json')
    hub.offer('a/b@refs/pr/1', tmp_path / 'repo')
    hub.token = 'hf_right'
    environment = {'HF_ENDPOINT': hub.address, 'HF_TOKEN': 'hf_right', 'HF_HOME': str(tmp_path / 'home')}
    found, other = _fetch_elsewhere('hf://a/b@refs%2Fpr%2F1', 'hf://nobody/nothing', **environment)
    assert found == 'read norm.bias stage0.patch_embed.proj.weight'
    assert other.startswith("checkpoint 'hf://nobody/nothing' could not be downloaded from nobody/nothing")
    assert list((tmp_path / 'home').rglob('model.safetensors.index.json'))


def test_offline_a_published_name_says_both_ways_out(tmp_path: Path) -> None:
    (line,) = _fetch_elsewhere(NAME, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path))
    assert _names_both_ways_out(line)


def test_a_web_address_is_downloaded_however_long_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Signed addresses are longer than the name of a file may be.
    query = f'?signature={"0" * 1000}'
    content = save(tmp_path / 'a.pth').read_bytes()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    with serving(type('Web', (FileServer,), dict(files={f'/a.pth{query}': content}, asked=[]))) as site:
        assert_equal(read(fetch(f'{site}/a.pth{query}')))
