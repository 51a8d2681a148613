from __future__ import annotations

from typing import Any

import pytest
from PIL import ImageDraw


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into pictures, in order."""
    written: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def note(self: ImageDraw.ImageDraw, xy: Any, text: str, **options: Any) -> None:
        written.append(text)
        draw(self, xy, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', note)
    return written
