from __future__ import annotations

import contextlib
import http.server
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from cvt_dense.arch import ARCHS
from cvt_dense.checkpoints import PUBLISHED, CheckpointError, sources
from cvt_dense.checkpoints.sources import SHIPPED, fetch, read

NAME = 'cvt-13-384x384-in22k'
WEIGHTS = {'stage0.patch_embed.proj.weight': torch.arange(12.0).view(3, 4), 'norm.bias': torch.ones(5)}


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f'touch {self.target}',)


def test_published_checkpoints_are_of_known_variants_and_have_names_of_their_own() -> None:
    assert {published.arch for published in PUBLISHED.values()} == set(ARCHS)
    assert all(name.startswith(f'{published.arch}-') for name, published in PUBLISHED.items())
    for attribute in ('filename', 'repo'):
        assert len({getattr(published, attribute) for published in PUBLISHED.values()}) == len(PUBLISHED)


def test_a_file_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'a.pth'
    path.touch()
    assert fetch(str(path)) == path
    monkeypatch.setenv('HOME', str(tmp_path))
    assert fetch('~/a.pth') == path


@pytest.mark.parametrize('name', ['nowhere/weights.pth', 'cvt-14', '', 'CVT-13-224x224-IN1K', '.'])
def test_what_is_neither_a_file_nor_a_name_lists_the_names(name: str) -> None:
    with pytest.raises(CheckpointError) as error:
        fetch(name)
    assert repr(name) in str(error.value)
    assert all(known in str(error.value) for known in [*PUBLISHED, *SHIPPED])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', SHIPPED)
def test_what_comes_with_the_package_is_there_and_readable(name: str) -> None:
    assert read(fetch(name))


def test_a_published_name_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, filename: str) -> str:
        asked.append((repo, filename))
        return str(tmp_path / 'pytorch_model.bin')

    monkeypatch.setattr(sources, 'hf_hub_download', download)
    assert fetch(NAME) == tmp_path / 'pytorch_model.bin'
    assert asked == [('microsoft/cvt-13-384-22k', 'pytorch_model.bin')]


def _names_both_ways_out(error: pytest.ExceptionInfo) -> bool:
    parts = (
        NAME,
        'microsoft/cvt-13-384-22k',
        'CvT-13-384x384-IN-22k.pth',
        'model.backbone.init_cfg.checkpoint=PATH',
        'model.backbone.init_cfg=None',
    )
    return all(part in str(error.value) for part in parts) and '\n' not in str(error.value)


def _http_error() -> HfHubHTTPError:
    response_type = HfHubHTTPError.__init__.__globals__['Response']
    request_type = sys.modules[response_type.__module__.split('.')[0]].Request
    response = response_type(503, request=request_type('GET', 'https://huggingface.co'))
    return HfHubHTTPError('503 Service Unavailable\n\nsecond line', response=response)


@pytest.mark.parametrize(
    'error',
    [_http_error(), LocalEntryNotFoundError('offline\nsecond line'), ConnectionResetError('reset'), OSError()],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_download_says_both_ways_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, filename: str) -> str:
        raise error

    monkeypatch.setattr(sources, 'hf_hub_download', download)
    with pytest.raises(CheckpointError) as raised:
        fetch(NAME)
    assert _names_both_ways_out(raised)
    assert (str(error).splitlines() or ['OSError'])[0] in str(raised.value)
    assert 'second line' not in str(raised.value)


class _Hub(http.server.BaseHTTPRequestHandler):
    """A Hugging Face Hub with one file, which it may deny, or break off in the middle of."""

    protocol_version = 'HTTP/1.1'
    status = 200
    broken = False
    body = b''

    def do_HEAD(self) -> None:
        status = self.status if 'pytorch_model.bin' in self.path else 404
        self.send_response(status)
        self.send_header('ETag', '"0123"')
        self.send_header('X-Repo-Commit', 'a' * 40)
        self.send_header('Content-Length', str(len(self.body) if status == 200 else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.status != 200 or 'pytorch_model.bin' not in self.path:
            return
        self.wfile.write(self.body[: len(self.body) // 2] if self.broken else self.body)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    torch.save(WEIGHTS, tmp_path / 'weights.bin')
    handler = type('Hub', (_Hub,), dict(body=(tmp_path / 'weights.bin').read_bytes()))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    endpoint = f'http://127.0.0.1:{server.server_address[1]}'
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', endpoint + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_download_from_a_server_is_read_and_kept(hub: type[_Hub]) -> None:
    assert_equal(read(fetch(NAME)))
    hub.status = 404
    assert_equal(read(fetch(NAME)))  # from the cache


@pytest.mark.parametrize('status', [401, 404])
def test_a_server_that_denies_the_file_says_both_ways_out(hub: type[_Hub], status: int) -> None:
    hub.status = status
    with pytest.raises(CheckpointError) as error:
        fetch(NAME)
    assert _names_both_ways_out(error)


def test_a_connection_lost_in_the_middle_of_a_download_says_both_ways_out(
    hub: type[_Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between the attempts
    hub.broken = True
    with pytest.raises(CheckpointError) as error:
        fetch(NAME)
    assert _names_both_ways_out(error)


def test_offline_a_published_name_says_both_ways_out(tmp_path: Path) -> None:
    code = f"""
from cvt_dense.checkpoints import CheckpointError
from cvt_dense.checkpoints.sources import fetch
try:
    fetch({NAME!r})
except CheckpointError as error:
    print(error)
"""
    env = os.environ | {'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path)}
    result = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True)
    (line,) = result.stdout.splitlines()
    assert 'CvT-13-384x384-IN-22k.pth' in line
    assert 'model.backbone.init_cfg=None' in line


def assert_equal(read_back: object) -> None:
    assert read_back.keys() == WEIGHTS.keys()
    assert all(torch.equal(read_back[key], tensor) for key, tensor in WEIGHTS.items())


def save(path: Path, content: dict[str, Tensor] = WEIGHTS) -> Path:
    if path.suffix == '.safetensors':
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization='legacy' not in path.name)
    return path


FILES = ('a.pth', 'a.bin', 'legacy.pth', 'legacy.bin', 'a.safetensors')


@pytest.mark.parametrize('name', FILES)
def test_every_kind_of_file_is_read(tmp_path: Path, name: str) -> None:
    assert_equal(read(save(tmp_path / name)))


@pytest.mark.parametrize('name', FILES)
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    whole = save(tmp_path / name).read_bytes()
    for length in {*range(0, min(len(whole), 64)), *range(0, len(whole), 1 + len(whole) // 40), len(whole) - 1}:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError, match=f'{name} (is damaged, incomplete or|was refused: it is damaged)'
        ) as error:
            read(tmp_path / name)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', FILES)
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_a_damaged_file_never_fails_otherwise(tmp_path: Path, name: str) -> None:
    whole = save(tmp_path / name).read_bytes()
    for position in torch.randint(len(whole), (150,)).tolist():
        (tmp_path / name).write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with contextlib.suppress(CheckpointError):
            read(tmp_path / name)  # a byte of a tensor's values, say, goes unnoticed


@pytest.mark.parametrize(
    'text',
    [
        '',
        '\n',
        'hello world\n',
        'README',
        '<!DOCTYPE html><html>404</html>',
        '{"error": "not found"}',
        'version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 80000000\n',
    ],
)
@pytest.mark.parametrize('suffix', ['.pth', '.bin', '.safetensors'])
def test_a_text_file_is_refused(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f'text{suffix}'
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r'is damaged, incomplete or no checkpoint|was refused: it is damaged'):
        read(path)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f'folder{suffix}').mkdir()
    for name in ('folder', 'missing'):
        with pytest.raises(CheckpointError, match=f'{name}{suffix} is damaged, incomplete or no checkpoint'):
            read(tmp_path / f'{name}{suffix}')


@pytest.mark.parametrize('name', ['a.pth', 'legacy.pth', 'pickle.pth'])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    target, path = tmp_path / 'created', tmp_path / name
    if name == 'pickle.pth':
        path.write_bytes(pickle.dumps(Payload(target)))
    else:
        save(path, {'state_dict': Payload(target)})
    with pytest.raises(CheckpointError, match='was refused: it is damaged, or holds more than plain weights'):
        read(path)
    assert not target.exists()


@pytest.mark.parametrize(('content', 'kind'), [([1, 2], 'list'), (torch.zeros(2), 'Tensor'), (None, 'NoneType')])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object, kind: str) -> None:
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=f'holds a {kind} where a state dict was expected'):
        read(tmp_path / 'a.pth')
