"""What the tests of checkpoints share: files to read, and servers on the loopback interface that offer them."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS = {'stage0.patch_embed.proj.weight': torch.arange(12.0).view(3, 4), 'norm.bias': torch.ones(5)}


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f'touch {self.target}',)


def assert_equal(read_back: Mapping[str, Tensor]) -> None:
    """See that what was read is WEIGHTS."""
    assert read_back.keys() == WEIGHTS.keys()
    assert all(torch.equal(read_back[key], tensor) for key, tensor in WEIGHTS.items())


def save(path: Path, content: object = WEIGHTS) -> Path:
    """Write a checkpoint in the format that its name asks for."""
    if path.suffix == '.safetensors':
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization='legacy' not in path.name)
    return path


def save_shards(folder: Path, suffix: str) -> Path:
    """Write WEIGHTS as ``save_pretrained`` does if a shard takes one tensor; returns the index."""
    stem = 'model' if suffix == '.safetensors' else 'pytorch_model'
    names = {key: f'{stem}-{i:05}-of-{len(WEIGHTS):05}{suffix}' for i, key in enumerate(WEIGHTS, 1)}
    for key, name in names.items():
        save(folder / name, {key: WEIGHTS[key]})
    index = folder / f'{stem}{suffix}.index.json'
    index.write_text(json.dumps({'metadata': {'total_size': 68}, 'weight_map': names}))
    return index


class FileServer(http.server.BaseHTTPRequestHandler):
    """Offers files; to be subclassed for each server, since its settings are the class's.

    Attributes:
        files: The files, by the path that is requested (with its query).
        status: Status of every answer, if it is not to be what the request deserves.
        framing: How the end of a body is told: by its ``'length'``, by ``'chunked'`` encoding, or by the connection's
            ``'end'``.
        broken: Whether the connection ends in the middle of each body.
        asked: The requests so far.
    """

    protocol_version = 'HTTP/1.1'
    files: dict[str, bytes]
    status: HTTPStatus | None = None
    framing = 'length'
    broken = False
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.asked.append(f'{self.command} {self.path}')
        status = self.status or (HTTPStatus.OK if self.path in self.files else HTTPStatus.NOT_FOUND)
        self.reply(status, self.files[self.path] if status == HTTPStatus.OK else b'')

    def reply(self, status: HTTPStatus, body: bytes = b'', headers: Mapping[str, str] | None = None) -> None:
        """Answer; of a body, from where the request wants it and no further than it gets."""
        start = int(self.headers.get('Range', 'bytes=0-').removeprefix('bytes=').rstrip('-')) if body else 0
        self.send_response(HTTPStatus.PARTIAL_CONTENT if start else status)
        self.send_header('Connection', 'close')
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        if self.framing == 'length':
            self.send_header('Content-Length', str(len(body) - start))
        elif self.framing == 'chunked':
            self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        if self.command == 'HEAD':
            return
        sent = (body[: len(body) // 2] if self.broken else body)[start:]
        if self.framing == 'chunked':
            # A chunk that was announced at its whole length ends in the middle if the connection is to break.
            sent = f'{len(body) - start:x}\r\n'.encode() + sent + (b'' if self.broken else b'\r\n0\r\n\r\n')
        self.wfile.write(sent)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(handler: type[FileServer]) -> Iterator[str]:
    """Run a server; the value is its address."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_address[1]}'
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def nobody_serving() -> Iterator[str]:
    """The address of a port at which every connection is refused, since it is taken and nobody listens."""
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        yield f'http://127.0.0.1:{taken.getsockname()[1]}'
