"""Find images and videos, and name what is written about them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from ..errors import UserError

IMAGES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')


def find_inputs(patterns: Iterable[str]) -> list[Path]:
    """The images and videos that paths of files, folders and globs name, each once.

    Raises:
        UserError: If a path names none.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _expand(pattern):
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    within = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    found = sorted(p for p in within if p.suffix.lower() in IMAGES + VIDEOS and p.name[0] != '.' and _is_there(p))
    if found:
        return found
    if path.is_dir():
        raise UserError(f"folder {pattern} has no images or videos in it; for its subfolders give '{pattern}/**'")
    if glob.has_magic(pattern):
        raise UserError(f'no image or video matches {pattern}')
    raise UserError(f'input {pattern} does not exist')


def printable(text: object) -> str:
    """A path, or a message about it, for streams: bytes of a name that are no UTF-8 are written as ``\\udcNN``."""
    return str(text).encode(errors='backslashreplace').decode()


def _is_there(path: Path) -> bool:
    """Whether a path is a file, or a link to what is gone, which is for the reader to report."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def name_outputs(paths: list[Path]) -> list[str]:
    """Name what is written about each file: by its path below the folder that all have in common, without suffix.

    Names that would be the same, also to a file system that ignores case, are numbered.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath([path.parent for path in absolute])
    names: list[str] = []
    taken: set[str] = set()
    for path in absolute:
        name = plain = path.relative_to(common).with_suffix('').as_posix()
        numbers = count(2)
        while name.lower() in taken:
            name = f'{plain}-{next(numbers)}'
        taken.add(name.lower())
        names.append(name)
    return names
