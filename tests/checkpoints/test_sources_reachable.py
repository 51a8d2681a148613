from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import huggingface_hub
import pytest
from servers import FileServer, nobody_serving, save, save_shards, serving

from cvt_dense.checkpoints.download import target_of
from cvt_dense.checkpoints.published import SHIPPED
from cvt_dense.checkpoints.sources import LOCAL_FOLDER, check_reachable, find_here
from cvt_dense.errors import CheckpointError

NAME = 'cvt-13-384x384-in22k'
REPO = 'microsoft/cvt-13-384-22k'
COMMIT = 'f' * 40


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches, and nobody logged in."""
    monkeypatch.delenv(LOCAL_FOLDER, raising=False)
    monkeypatch.delenv('HF_TOKEN', raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    template = address + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', address)
    monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FileServer]]:
    """A server that is the Hub, too."""
    files = {f'/{REPO}/resolve/main/pytorch_model.bin': b'', '/a/b/resolve/v1/model.safetensors.index.json': b''}
    handler = type('Server', (FileServer,), dict(files=files, asked=[]))
    with serving(handler) as handler.address:
        use_hub(monkeypatch, handler.address)
        yield handler


def cache(tmp_path: Path, repo: str) -> Path:
    """The folder in which the Hub's cache keeps the files of a repository's main branch."""
    folder = tmp_path / 'cache' / f'models--{repo.replace("/", "--")}'
    (folder / 'refs').mkdir(parents=True)
    (folder / 'refs' / 'main').write_text(COMMIT)
    (folder / 'snapshots' / COMMIT).mkdir(parents=True)
    return folder / 'snapshots' / COMMIT


def test_what_is_here_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / 'a.pth')
    assert find_here(str(path)) == path
    assert find_here('cvt-tiny-shapes') == SHIPPED['cvt-tiny-shapes']
    assert find_here(NAME) is None
    assert find_here('hf://a/b') is None
    assert find_here('https://example.org/a.pth') is None
    monkeypatch.setenv(LOCAL_FOLDER, str(tmp_path))
    local = save(tmp_path / f'{NAME}.safetensors')
    assert find_here(NAME) == local


def test_what_was_downloaded_before_is_found(tmp_path: Path) -> None:
    kept = save(cache(tmp_path, REPO) / 'pytorch_model.bin')
    assert find_here(NAME) == kept
    index = save_shards(cache(tmp_path, 'a/b'), '.safetensors')
    assert find_here('hf://a/b') == index
    next(index.parent.glob('*-of-*')).unlink()
    assert find_here('hf://a/b') is None
    target = target_of('https://example.org/a.pth')
    target.parent.mkdir(parents=True)
    assert find_here('https://example.org/a.pth') is None
    assert find_here('https://example.org/a.pth') is None or save(target)


@pytest.mark.parametrize('checkpoint', ['nope', 'hf://a', 'http://[::1/a.pth', 'https://example.org/'])
def test_what_is_no_checkpoint_is_an_error(checkpoint: str) -> None:
    with pytest.raises(CheckpointError):
        find_here(checkpoint)


def test_servers_are_asked_and_nothing_is_downloaded(server: type[FileServer]) -> None:
    assert check_reachable(NAME) == f'{server.address}/{REPO}/resolve/main/pytorch_model.bin'
    assert check_reachable('hf://a/b@v1').endswith('/a/b/resolve/v1/model.safetensors.index.json')
    server.files['/a.pth'] = b''
    assert check_reachable(f'{server.address}/a.pth') == f'{server.address}/a.pth'
    assert [request for request in server.asked if not request.startswith('HEAD ')] == []


def test_a_token_is_shown_to_the_hub_alone(server: type[FileServer], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str | None] = []
    monkeypatch.setattr(server, 'answer', lambda self: shown.append(self.headers['Authorization']) or self.reply(200))
    monkeypatch.setenv('HF_TOKEN', 'secret')
    check_reachable(NAME)
    check_reachable(f'{server.address}/a.pth')
    assert shown == ['Bearer secret', None]


def test_a_redirection_is_an_answer_and_so_is_not_knowing_the_method(server: type[FileServer]) -> None:
    for server.status in (HTTPStatus.FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED):
        assert check_reachable(NAME)
    assert len(server.asked) == 3


@pytest.mark.parametrize('status', [HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE])
@pytest.mark.parametrize('checkpoint', [NAME, 'hf://a/b', '{address}/a.pth'])
def test_a_server_that_denies_it(server: type[FileServer], checkpoint: str, status: HTTPStatus) -> None:
    server.status = status
    with pytest.raises(CheckpointError, match=f'is not here, and not at .*: HTTP Error {status.value}'):
        check_reachable(checkpoint.format(address=server.address))


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with nobody_serving() as address:
        use_hub(monkeypatch, address)
        for checkpoint in (NAME, f'{address}/a.pth'):
            with pytest.raises(CheckpointError, match=rf'is not here, and {address}/.* not reached: .*refused'):
                check_reachable(checkpoint)


def test_offline_nobody_is_asked(server: type[FileServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(CheckpointError, match='HF_HUB_OFFLINE forbids'):
        check_reachable(NAME)
    assert server.asked == []
