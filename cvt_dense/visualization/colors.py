"""Colours for classes that are told apart from each other, and from what pictures are usually made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

Color = tuple[int, int, int]

DARK: Color = (20, 20, 20)
GREY: Color = (160, 160, 160)
WHITE: Color = (255, 255, 255)

#: Colours of a palette that are nearer to each other, by CIEDE2000, count as one; the eye just notices 2.
SAME = 5.0

# What no class looks like: lines, letters and what is ignored, and then skin, soil, foliage, sky, asphalt, blood, and
# tissue in haematoxylin and eosin.
_TAKEN = (DARK, GREY, WHITE)
_COMMON = (
    *((200, 150, 120), (120, 85, 60), (80, 110, 50), (150, 190, 230), (120, 120, 125)),
    *((225, 150, 150), (230, 160, 190), (110, 60, 140)),
)
_STEP = 17  # between neighbouring candidates: 16 values a channel
_LIGHTNESS = (35.0, 95.0)
_LEAST_CHROMA = 30.0  # those below look like greys


def repaired(palette: Sequence[Color]) -> list[Color]:
    """A palette in which each colour that looks like an earlier one is replaced.

    Args:
        palette: RGB colours, of any length.

    Returns:
        As many, any two of them at least :data:`SAME` apart as long as there are such colours; those that are told
        apart from the ones before them stay.
    """
    kept: list[Color] = []
    for color in palette:
        if not kept or differences(color, kept).min() >= SAME:
            kept.append(color)
    if len(kept) == len(palette):
        return kept
    free, stays = far_from(kept), iter(kept)
    following = next(stays)
    result = []
    for color in palette:
        if color == following:
            following = next(stays, None)
            result.append(color)
        else:
            result.append(next(free))
    return result


def far_from(taken: Sequence[Color]) -> Iterator[Color]:
    """Yield colours without end, each the farthest from those before it, as the eye sees it.

    The same ones each time: the first N do not depend on how many are taken.

    Args:
        taken: RGB colours that are in use already.
    """
    candidates = _candidates()
    lab = _lab(candidates)
    distance = np.full(len(candidates), np.inf)
    for color in (*_TAKEN, *_COMMON, *taken):
        distance = np.minimum(distance, _ciede2000(lab, _lab([color])))
    while True:
        if distance.max() <= 0:  # all of them are used: once more from the start
            distance[:] = np.inf
        chosen = int(distance.argmax())
        distance = np.minimum(distance, _ciede2000(lab, lab[chosen]))
        red, green, blue = candidates[chosen].tolist()
        yield red, green, blue


def differences(color: Color, others: Sequence[Color]) -> np.ndarray:
    """How different colours look, by CIEDE2000: 2 is just noticed, black and white are 100 apart.

    Args:
        color: RGB, 0 to 255.
        others: N more.

    Returns:
        ``(N,)``.
    """
    return _ciede2000(_lab(others), _lab([color]))


def rim_of(color: Color) -> Color:
    """Dark around what is light and white around what is dark: on any ground one of the two stands out."""
    return DARK if lightness(color) >= 50 else WHITE


def letters_on(color: Color) -> Color:
    """Black or white, whichever is read better."""
    return (0, 0, 0) if lightness(color) >= 55 else WHITE


def lightness(color: Color) -> float:
    """L* of an RGB colour: 0 for black, 100 for white."""
    return float(_lab([color])[0, 0])


def _candidates() -> np.ndarray:
    """``(N, 3)``: colours from all over RGB that are neither dark nor pale."""
    values = np.arange(0, 256, _STEP)
    colors = np.stack(np.meshgrid(values, values, values, indexing='ij'), axis=-1).reshape(-1, 3)
    lab = _lab(colors)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    darkest, lightest = _LIGHTNESS
    return colors[(lab[:, 0] >= darkest) & (lab[:, 0] <= lightest) & (chroma >= _LEAST_CHROMA)]


def _lab(colors: Sequence[Color] | np.ndarray) -> np.ndarray:
    """``(N, 3)`` of RGB, 0 to 255, as CIELAB."""
    return cv2.cvtColor(np.asarray(colors, np.float32)[None] / 255, cv2.COLOR_RGB2Lab)[0].astype(float)


def _ciede2000(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The difference of colours in CIELAB, ``(..., 3)`` each, by CIE 142-2001 with all weights 1."""
    lightness, a, b = np.moveaxis(np.stack(np.broadcast_arrays(one, other)), -1, 0)
    mean_chroma = np.hypot(a, b).mean(0)
    stretched = a * (1.5 - 0.5 * np.sqrt(mean_chroma**7 / (mean_chroma**7 + 25.0**7)))
    chroma, hue = np.hypot(stretched, b), np.degrees(np.arctan2(b, stretched)) % 360
    is_grey = chroma.prod(0) == 0
    turn = np.where(is_grey, 0, (hue[1] - hue[0] + 180) % 360 - 180)
    middle = np.where(is_grey, hue.sum(0), hue[0] + turn / 2)
    d_lightness, d_chroma = lightness[1] - lightness[0], chroma[1] - chroma[0]
    d_hue = 2 * np.sqrt(chroma.prod(0)) * np.sin(np.radians(turn / 2))
    lightness, chroma = lightness.mean(0), chroma.mean(0)

    def wave(times: int, shift: float) -> np.ndarray:
        return np.cos(np.radians(times * middle + shift))

    hue_term = 1 - 0.17 * wave(1, -30) + 0.24 * wave(2, 0) + 0.32 * wave(3, 6) - 0.2 * wave(4, -63)
    by_lightness = d_lightness / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    by_chroma = d_chroma / (1 + 0.045 * chroma)
    by_hue = d_hue / (1 + 0.015 * chroma * hue_term)
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    rotation = rotation * np.sin(np.radians(60 * np.exp(-((((middle % 360) - 275) / 25) ** 2))))
    return np.sqrt(np.maximum(by_lightness**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue, 0))
