"""Where checkpoints come from: a file, a folder, a web server, the Hugging Face Hub, or the table of published ones."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import constants, get_token, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..errors import CheckpointError, reason
from .download import download, target_of
from .files import WEIGHT_FILES, shard_names
from .published import PUBLISHED, SHIPPED, Published, find_published

#: Names a folder that is searched for published checkpoints before the Hub is asked.
LOCAL_FOLDER = 'CVT_DENSE_CHECKPOINTS'

_HUB_ADDRESS = re.compile(r'^hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>[^/].*?))?/?$')
_WAYS_OUT = (
    'Without network, either give a local copy of {file}: --cfg-options model.backbone.init_cfg.checkpoint=PATH, or '
    'train from scratch: --cfg-options model.backbone.init_cfg=None'
)
_NO_HEAD = (405, 501)  # what servers that do not know the method answer


@dataclass(frozen=True)
class WebFile:
    """A file on a web server."""

    url: str


@dataclass(frozen=True)
class HubFile:
    """The first of some files that a repository of the Hugging Face Hub has.

    Attributes:
        repo: ``owner/name``.
        revision: A branch, tag or commit; None for the default branch.
        files: Their names, best first.
        copy_of: What to get elsewhere if the Hub cannot be reached.
    """

    repo: str
    revision: str | None
    files: tuple[str, ...]
    copy_of: str


def locate(checkpoint: str) -> Path | WebFile | HubFile:
    """Where a checkpoint is: a local path (of its index, if it is in several files), or a place to download it from.

    Args:
        checkpoint: One of

            - a file, or a folder in the layout of Hugging Face's ``save_pretrained``,
            - ``https://…`` (or ``http://…``),
            - ``hf://owner/name[@revision][/file]``,
            - a name in :data:`~cvt_dense.checkpoints.published.PUBLISHED`, or the name of the authors' file: searched
              for in the folder ``$CVT_DENSE_CHECKPOINTS``, under either name, then on the Hub, or where the authors
              have it.

    Raises:
        CheckpointError: If there is no such file and no such name, or an address is malformed.
    """
    if checkpoint.startswith(('https://', 'http://')):
        return WebFile(checkpoint)
    if checkpoint.startswith('hf://'):
        return _parse_hub_address(checkpoint)
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
    local = find_local(published)
    if local is not None:
        return local
    if published.repo is None:
        return WebFile(published.url)
    return HubFile(published.repo, None, ('pytorch_model.bin',), published.filename)


def fetch(checkpoint: str) -> Path:
    """Get a checkpoint as a local file, downloading it if needed; of several files, the path of their index.

    Web servers' files are kept as :func:`~cvt_dense.checkpoints.download.download` says, the Hub's in its own cache
    (whose offline mode and token count).

    Args:
        checkpoint: As :func:`locate` takes it.

    Raises:
        CheckpointError: If there is no such file and no such name, or the download fails.
    """
    place = locate(checkpoint)
    if isinstance(place, WebFile):
        return download(place.url)
    return _download_from_hub(checkpoint, place) if isinstance(place, HubFile) else place


def find_here(checkpoint: str) -> Path | None:
    """The file that :func:`fetch` reads without a network; None if it needs one.

    Args:
        checkpoint: As :func:`locate` takes it.

    Raises:
        CheckpointError: If the checkpoint is neither a file nor a known name or address.
    """
    place = locate(checkpoint)
    if isinstance(place, HubFile):
        return _in_cache(place)
    if isinstance(place, WebFile):
        try:
            target = target_of(place.url)
        except ValueError as error:  # what urllib says of a malformed one
            raise CheckpointError(f'checkpoint {checkpoint!r} is not a valid address ({reason(error)})') from error
        return target if target.is_file() else None
    return place


def check_reachable(checkpoint: str, timeout: float = 5.0) -> str:
    """Ask the server of a checkpoint that is not here whether it has it; returns the address that it is at.

    Args:
        checkpoint: As :func:`locate` takes it.
        timeout: For each answer, in seconds.

    Raises:
        CheckpointError: If the server does not answer, or does not have it.
    """
    place = locate(checkpoint)
    headers: dict[str, str] = {}
    if isinstance(place, WebFile):
        addresses = [place.url]
    elif not isinstance(place, HubFile):
        addresses = [checkpoint]
    elif constants.HF_HUB_OFFLINE:
        raise CheckpointError(f'checkpoint {checkpoint!r} is not here, and HF_HUB_OFFLINE forbids to ask for it')
    else:
        addresses = [hf_hub_url(place.repo, name, revision=place.revision) for name in place.files]
        token = get_token()
        headers = {'Authorization': f'Bearer {token}'} if token else {}
    for address in addresses:
        try:
            _head(address, headers, timeout)
        except urllib.error.HTTPError as error:
            problem = reason(error)
        except (OSError, HTTPException) as error:
            cause = getattr(error, 'reason', None) or reason(error)
            raise CheckpointError(
                f'checkpoint {checkpoint!r} is not here, and {address} not reached: {cause}'
            ) from error
        else:
            return address
    raise CheckpointError(f'checkpoint {checkpoint!r} is not here, and not at {addresses[0]}: {problem}')


def find_local(published: Published) -> Path | None:
    """Look for a published checkpoint in the folder ``$CVT_DENSE_CHECKPOINTS``; None if it is not there.

    Raises:
        CheckpointError: If the variable is set to something that is not a folder.
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


def _parse_hub_address(address: str) -> HubFile:
    match = _HUB_ADDRESS.match(address)
    if match is None:
        raise CheckpointError(f'checkpoint {address!r} is not of the form hf://owner/name[@revision][/file]')
    # A revision with a slash, such as refs/pr/1, is written refs%2Fpr%2F1.
    revision = unquote(match['revision']) if match['revision'] else None
    return HubFile(match['repo'], revision, (match['file'],) if match['file'] else WEIGHT_FILES, 'the file')


def _download_from_hub(checkpoint: str, place: HubFile) -> Path:
    """The first of the files that the repository has, downloaded to the Hub's cache."""
    try:
        path = _first_in_repo(place)
        if path is not None and path.suffix == '.json':
            folder = Path(next(name for name in place.files if Path(name).name == path.name)).parent
            for shard in shard_names(path):
                hf_hub_download(place.repo, (folder / shard).as_posix(), revision=place.revision)
    except CheckpointError:
        raise
    except Exception as error:  # versions of huggingface_hub differ in their HTTP library, and so in its errors
        raise CheckpointError(
            f'checkpoint {checkpoint!r} could not be downloaded from {place.repo} on the Hugging Face Hub '
            f'({reason(error)}). {_WAYS_OUT.format(file=place.copy_of)}'
        ) from error
    if path is None:
        raise CheckpointError(
            f'checkpoint {checkpoint!r}: {place.repo} on the Hugging Face Hub has no {" or ".join(place.files)}. '
            f'{_WAYS_OUT.format(file=place.copy_of)}'
        )
    return path


def _first_in_repo(place: HubFile) -> Path | None:
    for name in place.files:
        try:
            return Path(hf_hub_download(place.repo, name, revision=place.revision))
        except LocalEntryNotFoundError:
            # No connection: another of the files may have been downloaded before.
            cached = (try_to_load_from_cache(place.repo, other, revision=place.revision) for other in place.files)
            path = next((found for found in cached if isinstance(found, str)), None)
            if path is None:
                raise
            return Path(path)
        except EntryNotFoundError:
            continue
    return None


def _in_cache(place: HubFile) -> Path | None:
    """The file in the Hub's own cache, if all of it is there."""
    for name in place.files:
        found = try_to_load_from_cache(place.repo, name, revision=place.revision)
        if isinstance(found, str):
            path = Path(found)
            whole = path.suffix != '.json' or all((path.parent / shard).is_file() for shard in shard_names(path))
            return path if whole else None
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirection as the answer: the address it leads to may be signed for a download, and refuse HEAD."""

    def redirect_request(self, *args: object) -> None:
        return None


def _head(address: str, headers: dict[str, str], timeout: float) -> None:
    request = urllib.request.Request(address, headers=headers, method='HEAD')
    try:
        urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 400 and error.code not in _NO_HEAD:
            raise
