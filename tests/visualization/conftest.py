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


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rectangles that are filled, as left, top, right, bottom, in order: of instances, those of their labels."""
    boxes: list[list[int]] = []
    draw = ImageDraw.ImageDraw.rectangle

    def note(self: ImageDraw.ImageDraw, xy: Any, **options: Any) -> None:
        boxes.append(list(xy))
        draw(self, xy, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, 'rectangle', note)
    return boxes
