"""Draw the scenes of the shapes data set.

A scene shows two to six objects (ellipses, rectangles, triangles, stars, rings) on a textured background. Colour and
texture say nothing about the class; only the outline does.

Scene ``i`` of a split depends on the seed, the split, ``i`` and the size alone: it is the same however many there are,
and the splits are independent of each other. With the same versions of NumPy, SciPy, scikit-image and Pillow, it is
the same to the bit. The weights that come with the package were trained on these scenes, so how they are drawn must
not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.color import deltaE_cie76, hsv2rgb, rgb2lab
from skimage.filters import gaussian
from skimage.segmentation import find_boundaries

from ..errors import UserError

#: The label of a class is its place here plus one; 0 is the background.
CLASSES = ('ellipse', 'rectangle', 'triangle', 'star', 'ring')

#: RGB colours of CLASSES in the preview; the scenes themselves do not use them.
CLASS_COLORS = ((60, 150, 255), (255, 160, 40), (70, 210, 110), (245, 80, 150), (170, 110, 255))

SPLITS = ('train', 'val')  # in this order: a split's place seeds its scenes

MIN_SIZE = 32
MIN_OBJECTS, MAX_OBJECTS = 2, 6
DIAMETERS = (0.18, 0.5)  # of the circumscribed circle, as a share of the image side
MIN_IN_FRAME = 0.6  # share of the whole object that lies inside the image
MIN_VISIBLE = 0.3  # share of the in-frame object that later objects leave visible
MIN_PIXELS = 16  # visible pixels of an object in a small image ...
MIN_PIXEL_SHARE = 0.002  # ... and as a share of a larger one
MIN_DELTA_E = 20.0  # CIE76 distance of an object from what is beneath it ...
MIN_CONTRAST_SHARE = 0.85  # ... reached by at least this share of its pixels
MAX_TRIES = 40  # placements tried for one object before the scene goes without it
SUPERSAMPLE = 4  # sub-pixels along each side when an outline is drawn
PREVIEW_SIDE = 4  # the preview shows this many rows and columns of scenes

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: A pattern: height, width and side of the whole image in pixels, and the source of its choices -> (H, W) in [0, 1].
Field = Callable[[int, int, int, np.random.Generator], Floats]


@dataclass(frozen=True)
class Scene:
    """One image with its annotations; objects are in drawing order, the last one on top.

    Attributes:
        image: RGB, uint8, (S, S, 3).
        masks: Visible part of each object, bool, (N, S, S); no pixel belongs to two objects.
        labels: Class of each object, uint8, (N,), values 1..len(CLASSES).
        full_areas: Pixels each object would have in the image if nothing lay over it, int64, (N,).
    """

    image: NDArray[np.uint8]
    masks: Mask
    labels: NDArray[np.uint8]
    full_areas: NDArray[np.int64]

    def label_map(self) -> NDArray[np.uint8]:
        """The class of every pixel, uint8, (S, S), 0 where there is no object."""
        return np.tensordot(self.labels, self.masks, axes=1)


def scene_at(seed: int, split: str, index: int, size: int) -> Scene:
    """Draw one scene.

    The number of objects and their classes are drawn first and evenly, so that a shape that is harder to place is not
    rarer. An object for which no place is found is skipped.

    Args:
        seed: Of the data set.
        split: One of SPLITS.
        index: Of the scene in its split.
        size: Side of the image in pixels.

    Raises:
        UserError: See :func:`check_scene`.
    """
    check_scene(seed, size)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _texture(_BACKGROUNDS, size, size, size, rng)
    wanted = rng.integers(1, len(CLASSES) + 1, rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    masks: list[Mask] = []
    full_areas: list[int] = []
    labels = [
        label
        for label in wanted
        if any(_put_object(canvas, masks, full_areas, CLASSES[label - 1], rng) for _ in range(MAX_TRIES))
    ]
    return Scene(
        image=_finish(canvas, rng),
        masks=np.array(masks, dtype=bool).reshape(-1, size, size),
        labels=np.array(labels, dtype=np.uint8),
        full_areas=np.array(full_areas, dtype=np.int64),
    )


def check_scene(seed: int, size: int) -> None:
    """Check what a scene is drawn from.

    Raises:
        UserError: If the seed is out of range, or the size too small for objects of different outlines.
    """
    if size < MIN_SIZE:
        raise UserError(f'size must be at least {MIN_SIZE} pixels, not {size}')
    # A larger seed takes two words of the seed sequence and could meet another seed's scenes.
    if not 0 <= seed < 2**32:
        raise UserError(f'seed must be between 0 and {2**32 - 1}, not {seed}')


def draw_preview(seed: int, size: int) -> Image.Image:
    """Draw the first training scenes in a grid, each beside its coloured masks, above a legend.

    Args:
        seed: Of the data set.
        size: Side of the scenes in pixels.

    Returns:
        An RGB image with PREVIEW_SIDE rows of as many scenes.
    """
    gap = max(2, size // 20)
    font = ImageFont.load_default(max(12, size // 8))
    legend = font.size * 2
    cell = (2 * size + 1 + gap, size + gap)
    sheet = Image.new('RGB', (gap + PREVIEW_SIDE * cell[0], gap + PREVIEW_SIDE * cell[1] + legend), 'white')
    for index in range(PREVIEW_SIDE**2):
        scene = scene_at(seed, 'train', index, size)
        row, col = divmod(index, PREVIEW_SIDE)
        corner = (gap + col * cell[0], gap + row * cell[1])
        sheet.paste(Image.fromarray(scene.image), corner)
        sheet.paste(Image.fromarray(_color_masks(scene)), (corner[0] + size + 1, corner[1]))
    pen = ImageDraw.Draw(sheet)
    top = sheet.height - legend + (legend - font.size - gap) // 2
    step = sheet.width // len(CLASSES)
    for index, (name, color) in enumerate(zip(CLASSES, CLASS_COLORS)):
        left = gap + index * step
        pen.rectangle((left, top, left + font.size, top + font.size), fill=color)
        pen.text((left + font.size * 1.5, top + font.size / 2), name, fill='black', font=font, anchor='lm')
    return sheet


def _color_masks(scene: Scene) -> NDArray[np.uint8]:
    """A scene with every object tinted in its class's colour and outlined, uint8, (S, S, 3)."""
    grey = scene.image.mean(axis=-1, keepdims=True)
    tints = np.array(((0, 0, 0), *CLASS_COLORS))[scene.label_map()]
    objects = np.tensordot(np.arange(1, len(scene.masks) + 1), scene.masks, axes=1)
    shown = np.where(objects[..., None] > 0, 0.25 * grey + 0.75 * tints, 0.6 * grey)
    shown[find_boundaries(objects, mode='inner')] = 255
    return shown.astype(np.uint8)


# --- textures ---


def _grid(height: int, width: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Pixel coordinates in a randomly rotated frame, two arrays of (H, W)."""
    rows, cols = np.mgrid[:height, :width].astype(np.float64)
    angle = rng.uniform(0, 2 * np.pi)
    return cols * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - cols * np.sin(angle)


def _noise(height: int, width: int, sigma: float, rng: np.random.Generator) -> Floats:
    """Smooth noise of mean 0 and standard deviation 1, (H, W); ``sigma`` is in pixels."""
    field = gaussian(rng.standard_normal((height, width)), sigma, mode='wrap')
    return (field - field.mean()) / (field.std() + 1e-9)


def _cloud_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """Noise at three scales, coarse to fine, the coarse one strongest, (H, W) in [0, 1]."""
    coarse = size * rng.uniform(0.04, 0.12)
    field = sum(_noise(height, width, coarse / 2**octave, rng) / 1.8**octave for octave in range(3))
    return np.clip(0.5 + 0.25 * field, 0, 1)


def _gradient_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """A linear ramp in a random direction, (H, W) in [0, 1]."""
    along, _ = _grid(height, width, rng)
    return (along - along.min()) / (np.ptp(along) + 1e-9)


def _stripe_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """Stripes, straight or wavy, hard or soft, (H, W) in [0, 1]."""
    along, _ = _grid(height, width, rng)
    if rng.random() < 0.5:
        along = along + size * rng.uniform(0.01, 0.03) * _noise(height, width, size * 0.06, rng)
    wave = np.sin(2 * np.pi * along / (size * rng.uniform(0.05, 0.14)))
    # A clipped sine rather than a step: the edges come out anti-aliased.
    return np.clip(0.5 + rng.uniform(0.5, 2.5) * wave, 0, 1)


def _checker_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """A checkerboard with cells well below the size of an object, (H, W) in [0, 1]."""
    along, across = _grid(height, width, rng)
    cell = size * rng.uniform(0.03, 0.07)
    wave = np.sin(np.pi * along / cell) * np.sin(np.pi * across / cell)
    return np.clip(0.5 + 3 * wave, 0, 1)


def _blend_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """A pattern that fades in and out over a smooth ramp or noise, (H, W) in [0, 1]."""
    pattern = (_stripe_field, _checker_field)[rng.integers(2)](height, width, size, rng)
    base = (_cloud_field, _gradient_field)[rng.integers(2)](height, width, size, rng)
    weight = 0.7 * _gradient_field(height, width, size, rng)
    return weight * pattern + (1 - weight) * base


def _plain_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """One value everywhere, (H, W) in [0, 1]."""
    return np.full((height, width), rng.random())


_BACKGROUNDS = (_cloud_field, _gradient_field, _stripe_field, _checker_field, _blend_field)
_FILLS = (_plain_field, _gradient_field, _cloud_field, _stripe_field, _checker_field)


def _color(rng: np.random.Generator) -> Floats:
    """A random RGB colour, (3,) in [0, 1], of any hue, neither black nor overexposed."""
    return hsv2rgb(np.array((rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.3, 1.0))))


def _texture(fields: Sequence[Field], height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """One of ``fields`` between two random colours, RGB, (H, W, 3) in [0, 1]; ``size`` is the unit of the patterns."""
    first = _color(rng)
    # Part of the way to another colour: a full-contrast pattern would hide outlines.
    second = first + rng.uniform(0.2, 0.65) * (_color(rng) - first)
    field = fields[rng.integers(len(fields))](height, width, size, rng)
    return first + field[..., None] * (second - first)


# --- objects ---


def _points(angles: Floats) -> Floats:
    """Points of the unit circle, (V, 2) as (x, y)."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _circle(count: int) -> Floats:
    """Evenly spaced points of the unit circle, (count, 2)."""
    return _points(np.arange(count) * 2 * np.pi / count)


def _outline(name: str, rng: np.random.Generator) -> list[Floats]:
    """A shape of random proportions that fits the unit circle: polygons of (V, 2), the outer one, then the holes.

    Raises:
        ValueError: If the class is unknown.
    """
    match name:
        case 'ellipse':
            return [_circle(72) * (1, rng.uniform(0.65, 1))]
        case 'rectangle':
            half = np.arctan(rng.uniform(0.6, 1))  # angle between the long axis and a corner
            return [_points(np.array([half, np.pi - half, np.pi + half, -half]))]
        case 'triangle':
            return [_points(np.array([0, 2, 4]) * np.pi / 3 + rng.uniform(-0.2, 0.2, 3))]
        case 'star':
            points = _circle(10)
            points[1::2] *= rng.uniform(0.38, 0.48)
            return [points]
        case 'ring':
            return [_circle(72), rng.uniform(0.5, 0.65) * _circle(72)]
    raise ValueError(f'unknown class {name!r}')


def _place(outline: list[Floats], size: int, rng: np.random.Generator) -> list[Floats]:
    """Scale, turn and move an outline to a random place; its centre lies inside the image.

    Returns:
        The polygons in pixels, (V, 2) as (x, y), the image being [0, size] x [0, size].
    """
    # Log-uniform: small and large objects alike, instead of mostly middling ones.
    radius = size / 2 * np.exp(rng.uniform(*np.log(DIAMETERS)))
    angle = rng.uniform(0, 2 * np.pi)
    turn = radius * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(0, size, 2)
    return [points @ turn + centre for points in outline]


def _area(points: Floats) -> float:
    """The area of a polygon of (V, 2), by the shoelace formula."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _coverage(polygons: list[Floats], size: int) -> Floats:
    """The share of every pixel that the first polygon without the others covers, (size, size)."""
    fine = Image.new('L', (size * SUPERSAMPLE,) * 2)
    pen = ImageDraw.Draw(fine)
    for index, points in enumerate(polygons):
        # From the corner of the image to the centres of sub-pixels; Pillow would truncate them.
        corners = np.rint(points * SUPERSAMPLE - 0.5).astype(int)
        pen.polygon([tuple(corner) for corner in corners.tolist()], fill=0 if index else 255)
    return np.asarray(fine.reduce(SUPERSAMPLE), np.float64) / 255


def _bounds(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns of the box around a mask that is not empty."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)


def _stands_out(fill: Floats, beneath: Floats, mask: Mask) -> bool:
    """Whether enough of an object differs visibly from what it lies on; (H, W, 3) twice, (H, W)."""
    # Every other row and column says the same and costs a quarter: CIELAB is the slow part of a scene.
    inside = mask[::2, ::2]
    if not inside.any():
        return False
    distance = deltaE_cie76(rgb2lab(fill[::2, ::2]), rgb2lab(beneath[::2, ::2]))
    return bool((distance[inside] >= MIN_DELTA_E).mean() >= MIN_CONTRAST_SHARE)


def _min_pixels(size: int) -> float:
    """The least visible area of an object, in pixels."""
    return max(MIN_PIXELS, MIN_PIXEL_SHARE * size**2)


def _leaves_visible(top: Mask, masks: Sequence[Mask], full_areas: Sequence[int]) -> bool:
    """Whether every object in ``masks``, (S, S) each, stays visible enough beneath ``top``, (S, S)."""
    least = _min_pixels(len(top))
    return all(np.count_nonzero(m & ~top) >= max(least, MIN_VISIBLE * area) for m, area in zip(masks, full_areas))


def _put_object(canvas: Floats, masks: list[Mask], full_areas: list[int], name: str, rng: np.random.Generator) -> bool:
    """Try to put one more object on top of a scene, whose state is the first three arguments.

    Args:
        canvas: RGB, (S, S, 3) in [0, 1].
        masks: Visible part of the objects so far, (S, S) each.
        full_areas: In-frame pixels of the objects so far.
        name: Class of the new object.
        rng: Source of shape, place, colour and texture.

    Returns:
        Whether this draw fits the scene; if not, the scene is unchanged.
    """
    size = len(canvas)
    polygons = _place(_outline(name, rng), size, rng)
    whole = _area(polygons[0]) - sum(_area(hole) for hole in polygons[1:])
    alpha = _coverage(polygons, size)
    mask = alpha >= 0.5
    full = np.count_nonzero(mask)
    if full < max(_min_pixels(size), MIN_IN_FRAME * whole) or not _leaves_visible(mask, masks, full_areas):
        return False
    box = _bounds(alpha > 0)
    beneath = canvas[box]
    fill = _texture(_FILLS, *beneath.shape[:2], size, rng)
    if not _stands_out(fill, beneath, mask[box]):
        return False
    canvas[box] = beneath + alpha[box][..., None] * (fill - beneath)
    masks[:] = [*(other & ~mask for other in masks), mask]
    full_areas.append(full)
    return True


def _finish(canvas: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A photograph of a canvas, (S, S, 3) in [0, 1]: uneven light, blur, noise; uint8."""
    size = len(canvas)
    light = 1 + rng.uniform(0, 0.3) * (_gradient_field(size, size, size, rng) - 0.5)
    image = gaussian(canvas * light[..., None], rng.uniform(0.2, 0.7), channel_axis=-1)
    image += rng.normal(0, rng.uniform(0.005, 0.025), image.shape)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
