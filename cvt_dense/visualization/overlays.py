"""Draw numbers over an image: how much each place weighs, and where a point is."""

from __future__ import annotations

import cv2
import numpy as np

from .colors import DARK

_GREY_BRIGHTNESS = 0.75
_OPACITY = 0.85
_CYAN = (255, 255, 0)  # BGR; not on the scale of colours


def draw_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay numbers over an image in grey: the larger, the brighter and the less transparent.

    Args:
        image: ``(H, W, 3)`` of uint8, BGR.
        heat: ``(h, w)`` from 0 to 1, of any size: each number fills its share of the image.

    Returns:
        ``(H, W, 3)`` of uint8, BGR.
    """
    height, width = image.shape[:2]
    heat = cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    colour = cv2.applyColorMap(np.round(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = _GREY_BRIGHTNESS * cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    opacity = _OPACITY * np.sqrt(heat)[..., None]
    return np.round((1 - opacity) * grey + opacity * colour).astype(np.uint8)


def draw_point(image: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """Circle a point, given by column and row, in a copy of an image ``(H, W, 3)`` of uint8, BGR."""
    picture = image.copy()
    line = max(1, round(max(image.shape[:2]) / 320))
    place = (round(point[0]), round(point[1]))
    for colour, width in ((DARK[::-1], 3 * line), (_CYAN, line)):
        cv2.circle(picture, place, 4 * line, colour, width, cv2.LINE_AA)
    return picture


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """An image ``(H, W, 3)`` whose longer side is at most ``side`` pixels: reduced, or as it is."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
