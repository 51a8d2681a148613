"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, writer: str = '') -> None:
    """Write a file, and make the folder that it lies in.

    Args:
        path: The file that was there before stays until all of the new one is on the disk.
        content: What is written.
        writer: Tells processes apart that write the same file at once.

    Raises:
        OSError: If that fails; what was at ``path`` is still there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}{writer}.part')
    try:
        with open(part, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
