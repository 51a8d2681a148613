"""Whether a file on a web server is still the one that was downloaded first, where its authors publish no hash."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

_CHUNK = 1 << 20


def compare_hash(url: str, file: Path, target: Path) -> None:
    """Keep the hash of a file's first download, beside where the file is kept, and warn if a later one differs.

    Args:
        url: Where it comes from.
        file: What was downloaded.
        target: Where it is going to be kept. Its hash stays if it is deleted.
    """
    kept = target.with_name(f'{target.name}.sha256')
    found = sha256(file)
    if not kept.is_file():
        kept.write_text(f'{found}  {target.name}\n')
        return
    first = kept.read_text().partition(' ')[0]
    if found != first:
        warnings.warn(
            f'{url} is not the file that was downloaded first: its SHA-256 is {found}, and was {first}; delete {kept} '
            'if that is right',
            stacklevel=2,
        )


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, 'rb') as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
