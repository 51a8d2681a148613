"""Tell whether a checkpoint can be had, without downloading it."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

from ..errors import CheckpointError, reason
from .download import target_of
from .files import WEIGHT_FILES, shard_names
from .published import SHIPPED, find_published
from .sources import fetch, find_local, parse_hub_address

_NO_HEAD = (405, 501)  # what servers that do not know the method answer


class _OnHub(NamedTuple):
    """Where a checkpoint is on the Hugging Face Hub: in the first of some files that the repository has."""

    repo: str
    revision: str | None
    files: tuple[str, ...]


def find_here(checkpoint: str) -> Path | None:
    """The file that :func:`~cvt_dense.checkpoints.sources.fetch` reads without a network; None if it needs one.

    Args:
        checkpoint: As ``fetch`` takes it.

    Raises:
        CheckpointError: If the checkpoint is neither a file nor a known name or address.
    """
    if checkpoint.startswith(('https://', 'http://')):
        try:
            target = target_of(checkpoint)
        except ValueError as error:  # what urllib says of a malformed one
            raise CheckpointError(f'checkpoint {checkpoint!r} is no address ({reason(error)})') from error
        return target if target.is_file() else None
    place = _on_hub(checkpoint)
    if place is None:
        return fetch(checkpoint)
    published = find_published(checkpoint)
    local = find_local(published) if published else None
    return local or _in_cache(place)


def check_reachable(checkpoint: str, timeout: float = 5.0) -> str:
    """Ask the server of a checkpoint that is not here whether it has it; returns the address that it is at.

    Args:
        checkpoint: As ``fetch`` takes it.
        timeout: For each answer, in seconds.

    Raises:
        CheckpointError: If the server does not answer, or does not have it.
    """
    place = _on_hub(checkpoint)
    if place is None:
        addresses, headers = [checkpoint], {}
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
            told = getattr(error, 'reason', None) or reason(error)
            raise CheckpointError(
                f'checkpoint {checkpoint!r} is not here, and {address} not reached: {told}'
            ) from error
        else:
            return address
    raise CheckpointError(f'checkpoint {checkpoint!r} is not here, and not at {addresses[0]}: {problem}')


def _on_hub(checkpoint: str) -> _OnHub | None:
    if checkpoint.startswith('hf://'):
        repo, revision, file = parse_hub_address(checkpoint)
        return _OnHub(repo, revision, (file,) if file else WEIGHT_FILES)
    is_local = os.path.exists(os.path.expanduser(checkpoint)) or checkpoint in SHIPPED
    published = None if is_local else find_published(checkpoint)
    return _OnHub(published.repo, None, ('pytorch_model.bin',)) if published else None


def _in_cache(place: _OnHub) -> Path | None:
    """The file in the Hub's own cache, if all of it is there."""
    for name in place.files:
        found = try_to_load_from_cache(place.repo, name, revision=place.revision)
        if isinstance(found, str):
            path = Path(found)
            whole = path.suffix != '.json' or all((path.parent / shard).is_file() for shard in shard_names(path))
            return path if whole else None
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes the address that a server refers to as its answer: it may be signed for a download, and refuse to tell."""

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
