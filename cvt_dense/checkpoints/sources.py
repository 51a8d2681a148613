"""Where checkpoints come from: a file, a folder, a web server, the Hugging Face Hub, or the table of published ones."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

from ..errors import CheckpointError, reason
from .download import download
from .files import WEIGHT_FILES, shard_names
from .published import PUBLISHED, SHIPPED, Published, find_published

#: Names a folder that is looked through for published checkpoints before the Hub is asked.
LOCAL_FOLDER = 'CVT_DENSE_CHECKPOINTS'

_HUB_ADDRESS = re.compile(r'^hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>[^/].*?))?/?$')
_WAYS_OUT = (
    'Without network, either give a local copy of {file}: --cfg-options model.backbone.init_cfg.checkpoint=PATH, or '
    'train from scratch: --cfg-options model.backbone.init_cfg=None'
)


def fetch(checkpoint: str) -> Path:
    """Find a checkpoint: the path of its file or, if it is in several, of their index.

    Args:
        checkpoint: One of

            - a file, or a folder in the layout of Hugging Face's ``save_pretrained``,
            - ``https://…`` (or ``http://…``), kept as :func:`~cvt_dense.checkpoints.download.download` says,
            - ``hf://owner/name[@revision][/file]``, kept in the Hub's own cache (its offline mode and token count),
            - a name in :data:`~cvt_dense.checkpoints.published.PUBLISHED`, or the name of the authors' file: looked
              for in the folder ``$CVT_DENSE_CHECKPOINTS``, under either name, then on the Hub.

    Raises:
        CheckpointError: If there is no such file and no such name, or the download fails.
    """
    if checkpoint.startswith(('https://', 'http://')):
        return download(checkpoint)
    if checkpoint.startswith('hf://'):
        return _from_hub_address(checkpoint)
    # To os.path, unlike pathlib, what cannot be a path (a name too long, an unknown ~user) is one that is not there.
    path = os.path.expanduser(checkpoint)
    if os.path.isfile(path):
        return Path(path)
    if os.path.isdir(path):
        return _weights_in(Path(path))
    if checkpoint in SHIPPED:
        return SHIPPED[checkpoint]
    published = find_published(checkpoint)
    if published is None:
        raise CheckpointError(
            f'checkpoint {checkpoint!r} is neither a file nor a known name; known are: '
            f'{", ".join([*PUBLISHED, *SHIPPED])}'
        )
    return find_local(published) or _from_hub(
        checkpoint, published.repo, None, ('pytorch_model.bin',), published.filename
    )


def find_local(published: Published) -> Path | None:
    """Look for a published checkpoint in the folder ``$CVT_DENSE_CHECKPOINTS``; None if it is not there.

    Raises:
        CheckpointError: If the variable is set and names no folder.
    """
    folder = os.environ.get(LOCAL_FOLDER)
    if not folder:
        return None
    root = Path(os.path.expanduser(folder))
    if not os.path.isdir(root):
        raise CheckpointError(f'{LOCAL_FOLDER} is set to {folder}, which is not a folder')
    names = [published.filename, *(f'{published.name}{suffix}' for suffix in ('.safetensors', '.pth', '.bin'))]
    return next((root / name for name in names if (root / name).is_file()), None)


def _weights_in(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f'checkpoint {folder} is a folder with no {", ".join(WEIGHT_FILES[:-1])} in it')


def parse_hub_address(address: str) -> tuple[str, str | None, str | None]:
    """Take ``hf://owner/name[@revision][/file]`` apart: repository, revision and file, None where it names none.

    Raises:
        CheckpointError: If the address is not of that form.
    """
    match = _HUB_ADDRESS.match(address)
    if match is None:
        raise CheckpointError(f'checkpoint {address!r} is not of the form hf://owner/name[@revision][/file]')
    # A revision with a slash, such as refs/pr/1, is written refs%2Fpr%2F1.
    return match['repo'], unquote(match['revision']) if match['revision'] else None, match['file']


def _from_hub_address(address: str) -> Path:
    repo, revision, file = parse_hub_address(address)
    return _from_hub(address, repo, revision, (file,) if file else WEIGHT_FILES, 'the file')


def _from_hub(checkpoint: str, repo: str, revision: str | None, files: tuple[str, ...], copy_of: str) -> Path:
    """The first of some files that a repository of the Hub has, downloaded to the Hub's cache."""
    try:
        path = _first_in_repo(repo, revision, files)
        if path is not None and path.suffix == '.json':
            folder = Path(next(name for name in files if Path(name).name == path.name)).parent
            for shard in shard_names(path):
                hf_hub_download(repo, (folder / shard).as_posix(), revision=revision)
    except CheckpointError:
        raise
    except Exception as error:  # versions of huggingface_hub differ in their HTTP library, and so in its errors
        raise CheckpointError(
            f'checkpoint {checkpoint!r} could not be downloaded from {repo} on the Hugging Face Hub '
            f'({reason(error)}). {_WAYS_OUT.format(file=copy_of)}'
        ) from error
    if path is None:
        raise CheckpointError(
            f'checkpoint {checkpoint!r}: {repo} on the Hugging Face Hub has no {" or ".join(files)}. '
            f'{_WAYS_OUT.format(file=copy_of)}'
        )
    return path


def _first_in_repo(repo: str, revision: str | None, files: tuple[str, ...]) -> Path | None:
    for name in files:
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError:
            # No connection: another of the files may have been downloaded before.
            cached = (try_to_load_from_cache(repo, other, revision=revision) for other in files)
            path = next((found for found in cached if isinstance(found, str)), None)
            if path is None:
                raise
            return Path(path)
        except EntryNotFoundError:
            continue
    return None
