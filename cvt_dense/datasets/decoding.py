"""Whether a picture is whole, by Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

#: What Pillow raises for content that it cannot read.
UNREADABLE = (OSError, SyntaxError, ValueError)


def is_cut_jpeg(content: bytes) -> bool:
    """Whether a JPEG ends before its picture does; OpenCV up to 4.10 fills the rest with grey and says nothing."""
    end, scan = content.rfind(b'\xff\xd9'), content.rfind(b'\xff\xda')
    if not content.startswith(b'\xff\xd8') or end > scan:
        return False
    return not can_be_decoded(content)  # what cameras put behind a picture may look like the beginning of a scan


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """A picture as Pillow opens it, without its warning of large ones."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as image:
            yield image


def can_be_decoded(content: bytes) -> bool:
    """Whether Pillow can decode a picture; one that it refuses for its size counts as whole."""
    try:
        with opened(content) as image:
            image.load()
    except Image.DecompressionBombError:
        return True
    except UNREADABLE:
        return False
    return True
