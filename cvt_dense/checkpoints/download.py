"""Download checkpoint files from web servers, whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

import torch
from filelock import FileLock
from tqdm import tqdm

from ..errors import CheckpointError, reason
from .files import is_file_name, read, shard_names
from .hashes import compare_hash

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte


def download(url: str) -> Path:
    """Download a checkpoint, and all that it lists if it is an index of shards, unless it was before.

    Files are kept below ``$TORCH_HOME/hub/checkpoints/cvt_dense``, under their own names and in one folder for each
    folder of a server. Of several processes one downloads, and the others wait for it.

    Raises:
        CheckpointError: If the download fails or is cut short, or what came is not a checkpoint. The file is not kept
            then; of an index, complete shards are.
    """
    try:
        target = target_of(url)
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.parent / f'.{target.name}.lock'):
                if not target.is_file():  # no other process downloaded it meanwhile
                    _fetch(url, target)
    except (OSError, HTTPException, ValueError) as error:  # the last is what urllib says of a malformed URL
        raise CheckpointError(
            f'checkpoint {url} could not be downloaded ({reason(error)}). Without network, give a local copy: '
            f'--cfg-options model.backbone.init_cfg.checkpoint=PATH'
        ) from error
    return target


def target_of(url: str) -> Path:
    """Where the file of a URL is kept."""
    address = urlsplit(url)
    name = unquote(PurePosixPath(address.path).name)
    if not is_file_name(name):
        raise CheckpointError(f'checkpoint {url} names no file')
    # Everything that tells two files of one name apart goes into the folder's name.
    parent = f'{address.scheme}://{address.netloc}{PurePosixPath(address.path).parent}?{address.query}'
    folder = hashlib.sha256(parent.encode()).hexdigest()[:16]
    return Path(torch.hub.get_dir()) / 'checkpoints' / 'cvt_dense' / folder / name


def _beside(url: str, name: str) -> str:
    """The URL of another file of the same folder, asked for with the same query."""
    address = urlsplit(url)
    return address._replace(path=str(PurePosixPath(address.path).with_name(quote(name)))).geturl()


def _fetch(url: str, target: Path) -> None:
    """Download to a file that appears only when it is whole and can be read; an index, when its shards are there."""
    prefix = f'.partial-{target.name}-'
    for left_over in target.parent.glob(f'{glob.escape(prefix)}*'):  # by a process that was killed: we hold the lock
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder:
        partial = Path(folder) / target.name
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, open(partial, 'wb') as file:
            expected = int(response.headers.get('Content-Length') or 0)
            with tqdm(total=expected or None, unit='B', unit_scale=True, desc=target.name) as progress:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
        size = partial.stat().st_size
        if expected and size != expected:
            raise OSError(f'the connection ended after {size} of {expected} bytes')
        shards: list[str] = []
        try:
            if target.suffix == '.json':
                shards = shard_names(partial)
            else:
                read(partial)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(partial), url)) from error
        for name in shards:
            download(_beside(url, name))
        compare_hash(url, partial, target)
        os.replace(partial, target)
