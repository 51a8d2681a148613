"""Make the shapes data set: synthetic scenes for detection, instance and semantic segmentation.

Every scene shows two to six objects (ellipses, rectangles, triangles, stars, rings) on a textured
background. Colour and texture say nothing about the class; only the outline does. The same scenes are
written in two forms, so that one data set serves all three tasks offline:

    DIR/images/training/train_000000.jpg               RGB scenes, JPEG quality 95, no chroma subsampling
    DIR/images/validation/val_000000.jpg
    DIR/annotations/instances_train.json               COCO instances: category ids 1..C, compressed RLE
    DIR/annotations/instances_val.json                 of the visible part, its box and its area
    DIR/annotations/training/train_000000.png          label maps: one uint8 channel, 0 = background,
    DIR/annotations/validation/val_000000.png          1..C = CLASSES in order
    DIR/classes.txt                                    one name a line: background, then CLASSES
    DIR/dataset.json                                   the parameters and the format version

The folders and suffixes are those of ADE20K, but label 0 is a class of its own here: background. Train
with ``reduce_zero_label=False`` and ``classes=('background', *CLASSES)``.

Scene ``i`` of a split depends on the seed, the split, ``i`` and the size alone. So ``--train 100`` is a
prefix of ``--train 200``, the two splits are independent draws, and a second run writes the same bytes
(with the same versions of NumPy, SciPy, scikit-image and Pillow).

Example:
    python tools/make_shapes.py --out data/shapes --train 2000 --val 200 --size 160 --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_codec
from skimage.color import hsv2rgb, rgb2lab
from skimage.filters import gaussian
from skimage.segmentation import find_boundaries
from tqdm import tqdm

CLASSES = ('ellipse', 'rectangle', 'triangle', 'star', 'ring')
"""Class names; the label of a class is its place here plus one, 0 being the background."""

CLASS_COLOURS = ((60, 150, 255), (255, 160, 40), (70, 210, 110), (245, 80, 150), (170, 110, 255))
"""RGB colours of CLASSES in the preview; the scenes themselves do not use them."""

SPLITS = {'train': 'training', 'val': 'validation'}
"""Name of a split: name of its folder. The order is part of the format: it seeds the scenes."""

FORMAT = {'name': 'shapes', 'version': 1}
"""Identifies the data set in dataset.json; raise the version when equal parameters give other files."""

MIN_SIZE = 32
MIN_OBJECTS, MAX_OBJECTS = 2, 6
DIAMETERS = (0.18, 0.5)  # of the circumscribed circle, as a share of the image side
MIN_IN_FRAME = 0.6  # share of the whole object that lies inside the image
MIN_VISIBLE = 0.3  # share of the in-frame object that later objects leave visible
MIN_PIXELS = 16  # visible pixels of an object in a small image ...
MIN_PIXEL_SHARE = 0.002  # ... and as a share of a larger one
MIN_DELTA_E = 20.0  # least CIE76 distance of an object from what is beneath it ...
MIN_CONTRAST_SHARE = 0.85  # ... to be reached by this share of its pixels
MAX_TRIES = 40  # placements tried for one object before the scene goes without it
MAX_INDEX = 10_000_000  # images in a split; keeps image ids of the splits apart
SUPERSAMPLE = 4  # sub-pixels along each side when an outline is drawn
JPEG_QUALITY = 95
PREVIEW_SIDE = 4  # the preview shows this many rows and columns of scenes

Floats = NDArray[np.float64]
Field = Callable[[int, int, int, np.random.Generator], Floats]


class ShapesError(Exception):
    """The data set cannot be made as asked; the message is one line for the user."""


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
    masks: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    full_areas: NDArray[np.int64]

    def label_map(self) -> NDArray[np.uint8]:
        """Returns the class of every pixel, uint8, (S, S), 0 where there is no object."""
        labels = np.zeros(self.image.shape[:2], np.uint8)
        for index, label in enumerate(self.labels):
            labels[self.masks[index]] = label
        return labels


# ---------------------------------------------------------------------------------------------------------
# Textures
# ---------------------------------------------------------------------------------------------------------


def _grid(height: int, width: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Returns pixel coordinates in a randomly rotated frame, two arrays of (H, W)."""
    rows, cols = np.mgrid[:height, :width].astype(np.float64)
    angle = rng.uniform(0, 2 * np.pi)
    return (
        cols * np.cos(angle) + rows * np.sin(angle),
        rows * np.cos(angle) - cols * np.sin(angle),
    )


def _noise(height: int, width: int, sigma: float, rng: np.random.Generator) -> Floats:
    """Returns smooth noise of mean 0 and standard deviation 1, (H, W); ``sigma`` is in pixels."""
    field = gaussian(rng.standard_normal((height, width)), sigma, mode='wrap')
    return (field - field.mean()) / (field.std() + 1e-9)


def _cloud_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """Returns noise at three scales, coarse to fine, the coarse one strongest, (H, W) in [0, 1]."""
    coarse = size * rng.uniform(0.04, 0.12)
    field = sum(_noise(height, width, coarse / 2**octave, rng) / 1.8**octave for octave in range(3))
    return np.clip(0.5 + 0.25 * field, 0, 1)


def _gradient_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """Returns a linear ramp in a random direction, (H, W) in [0, 1]."""
    along, _ = _grid(height, width, rng)
    return (along - along.min()) / (np.ptp(along) + 1e-9)


def _stripe_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """Returns stripes, straight or wavy, hard or soft, (H, W) in [0, 1]."""
    along, _ = _grid(height, width, rng)
    if rng.random() < 0.5:
        along = along + size * rng.uniform(0.01, 0.03) * _noise(height, width, size * 0.06, rng)
    wave = np.sin(2 * np.pi * along / (size * rng.uniform(0.05, 0.14)))
    # A clipped sine rather than a step: the edges come out anti-aliased.
    return np.clip(0.5 + rng.uniform(0.5, 2.5) * wave, 0, 1)


def _checker_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """Returns a checkerboard with cells well below the size of an object, (H, W) in [0, 1]."""
    along, across = _grid(height, width, rng)
    cell = size * rng.uniform(0.03, 0.07)
    wave = np.sin(np.pi * along / cell) * np.sin(np.pi * across / cell)
    return np.clip(0.5 + 3 * wave, 0, 1)


def _blend_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """Returns a pattern that fades in and out over a smooth ramp or noise, (H, W) in [0, 1]."""
    pattern = (_stripe_field, _checker_field)[rng.integers(2)](height, width, size, rng)
    base = (_cloud_field, _gradient_field)[rng.integers(2)](height, width, size, rng)
    weight = 0.7 * _gradient_field(height, width, size, rng)
    return weight * pattern + (1 - weight) * base


def _plain_field(height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """Returns one value everywhere, (H, W) in [0, 1]."""
    return np.full((height, width), rng.random())


_BACKGROUNDS = (_cloud_field, _gradient_field, _stripe_field, _checker_field, _blend_field)
_FILLS = (_plain_field, _gradient_field, _cloud_field, _stripe_field, _checker_field)


def _colour(rng: np.random.Generator) -> Floats:
    """Returns a random RGB colour, (3,) in [0, 1], of any hue, neither black nor burnt out."""
    hsv = (rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.3, 1.0))
    return hsv2rgb(np.array(hsv))


def _texture(fields: Sequence[Field], height: int, width: int, size: int, rng: np.random.Generator) -> Floats:
    """Paints one of ``fields`` between two random colours.

    Args:
        fields: Functions of (height, width, size, rng) that return (H, W) in [0, 1].
        height: Rows to paint.
        width: Columns to paint.
        size: Side of the whole image in pixels: the unit of the patterns.
        rng: Source of every choice.

    Returns:
        RGB, (H, W, 3) in [0, 1].
    """
    first = _colour(rng)
    # Part of the way to another colour: a full-contrast pattern would hide outlines.
    second = first + rng.uniform(0.2, 0.65) * (_colour(rng) - first)
    field = fields[rng.integers(len(fields))](height, width, size, rng)
    return first + field[..., None] * (second - first)


# ---------------------------------------------------------------------------------------------------------
# Objects
# ---------------------------------------------------------------------------------------------------------


def _circle(count: int, phase: float = 0.0) -> Floats:
    """Returns ``count`` evenly spaced points of the unit circle, (count, 2)."""
    angles = phase + np.arange(count) * 2 * np.pi / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _outline(name: str, rng: np.random.Generator) -> list[Floats]:
    """Draws the proportions of a shape that fits the unit circle.

    Args:
        name: One of CLASSES.
        rng: Source of the proportions.

    Returns:
        Polygons of (V, 2): the outer one, then the holes.

    Raises:
        ValueError: The class is unknown.
    """
    if name == 'ellipse':
        return [_circle(72) * (1, rng.uniform(0.65, 1))]
    if name == 'rectangle':
        half = np.arctan(rng.uniform(0.6, 1))  # angle between the long axis and a corner
        angles = np.array([half, np.pi - half, np.pi + half, -half])
        return [np.stack([np.cos(angles), np.sin(angles)], axis=1)]
    if name == 'triangle':
        angles = np.array([0, 2, 4]) * np.pi / 3 + rng.uniform(-0.2, 0.2, 3)
        return [np.stack([np.cos(angles), np.sin(angles)], axis=1)]
    if name == 'star':
        points = _circle(10)
        points[1::2] *= rng.uniform(0.38, 0.48)
        return [points]
    if name == 'ring':
        return [_circle(72), rng.uniform(0.5, 0.65) * _circle(72)]
    raise ValueError(f'unknown class {name!r}')


def _place(outline: list[Floats], size: int, rng: np.random.Generator) -> list[Floats]:
    """Scales, turns and moves an outline to a random place; its centre lies inside the image.

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
    """Returns the area of a polygon of (V, 2) by the shoelace formula."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _coverage(polygons: list[Floats], size: int) -> Floats:
    """Returns the share of every pixel that the first polygon less the others covers, (size, size)."""
    fine = Image.new('L', (size * SUPERSAMPLE,) * 2)
    pen = ImageDraw.Draw(fine)
    for index, points in enumerate(polygons):
        # From the corner of the image to the centres of sub-pixels; Pillow would cut the fractions off.
        corners = np.rint(points * SUPERSAMPLE - 0.5).astype(int)
        pen.polygon([tuple(corner) for corner in corners.tolist()], fill=0 if index else 255)
    return np.asarray(fine.reduce(SUPERSAMPLE), np.float64) / 255


def _bounds(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Returns the rows and columns of the box around a mask that is not empty."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)


def _stands_out(fill: Floats, beneath: Floats, mask: NDArray[np.bool_]) -> bool:
    """Tells whether enough of an object differs visibly from what it lies on; (H, W, 3) twice, (H, W)."""
    # Every other pixel tells the same and costs a quarter, CIELAB being the slow part of a scene.
    inside = mask[::2, ::2]
    if not inside.any():
        return False
    distance = np.linalg.norm(rgb2lab(fill[::2, ::2]) - rgb2lab(beneath[::2, ::2]), axis=-1)
    return bool((distance[inside] >= MIN_DELTA_E).mean() >= MIN_CONTRAST_SHARE)


def _min_pixels(size: int) -> float:
    """Returns the least visible area of an object in pixels."""
    return max(MIN_PIXELS, MIN_PIXEL_SHARE * size**2)


def _leaves_visible(top: NDArray[np.bool_], masks: list[NDArray[np.bool_]], full_areas: list[int]) -> bool:
    """Tells whether every object in ``masks``, (S, S) each, stays visible enough beneath ``top``, (S, S)."""
    for index, mask in enumerate(masks):
        left = np.count_nonzero(mask & ~top)
        if left < max(_min_pixels(len(top)), MIN_VISIBLE * full_areas[index]):
            return False
    return True


def _put_object(
    canvas: Floats,
    masks: list[NDArray[np.bool_]],
    full_areas: list[int],
    name: str,
    rng: np.random.Generator,
) -> bool:
    """Tries to put one more object on top of a scene; on success all three first arguments are updated.

    Args:
        canvas: RGB, (S, S, 3) in [0, 1].
        masks: Visible part of the objects so far, (S, S) each.
        full_areas: In-frame pixels of the objects so far.
        name: Class of the new object.
        rng: Source of shape, place, colour and texture.

    Returns:
        False if this draw does not fit the scene, which is then unchanged.
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
    for index, other in enumerate(masks):
        masks[index] = other & ~mask
    masks.append(mask)
    full_areas.append(full)
    return True


def _finish(canvas: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turns a canvas, (S, S, 3) in [0, 1], into a photograph of it: uneven light, blur, noise; uint8."""
    size = len(canvas)
    light = 1 + rng.uniform(0, 0.3) * (_gradient_field(size, size, size, rng) - 0.5)
    image = gaussian(canvas * light[..., None], rng.uniform(0.2, 0.7), channel_axis=-1)
    image += rng.normal(0, rng.uniform(0.005, 0.025), image.shape)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """Draws one scene.

    The number of objects and their classes are drawn first and evenly, so that a shape that is harder to
    place is not rarer. An object that no try can place is left out.

    Args:
        rng: Source of every choice: equal states give equal scenes.
        size: Side of the image in pixels, at least MIN_SIZE.

    Returns:
        The scene, with at most MAX_OBJECTS objects.

    Raises:
        ShapesError: The size is too small for objects that can be told apart.
    """
    if size < MIN_SIZE:
        raise ShapesError(f'size must be at least {MIN_SIZE} pixels, not {size}')
    canvas = _texture(_BACKGROUNDS, size, size, size, rng)
    wanted = rng.integers(1, len(CLASSES) + 1, rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    masks: list[NDArray[np.bool_]] = []
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


def scene_at(seed: int, split: str, index: int, size: int) -> Scene:
    """Draws the scene ``index`` of a split, one of SPLITS; see ``draw_scene``."""
    return draw_scene(np.random.default_rng([seed, list(SPLITS).index(split), index]), size)


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


def _stem(split: str, index: int) -> str:
    """Returns the file name of a scene without its suffix."""
    return f'{split}_{index:06d}'


def _image_entry(split: str, index: int, size: int) -> dict[str, Any]:
    """Returns the COCO record of an image; its id is unique across the splits and starts at 1."""
    return {
        'id': list(SPLITS).index(split) * MAX_INDEX + index + 1,
        'file_name': f'{_stem(split, index)}.jpg',
        'width': size,
        'height': size,
        'license': 1,
    }


def _annotation_entries(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """Returns the COCO records of the objects of a scene, masks as compressed RLE, boxes as [x, y, w, h]."""
    entries = []
    for index, mask in enumerate(scene.masks):
        rle = rle_codec.encode(np.asfortranarray(mask, dtype=np.uint8))
        entries.append(
            {
                # From the image id, not a running count: the same whatever the size of the split.
                'id': image_id * 10 + index,
                'image_id': image_id,
                'category_id': int(scene.labels[index]),
                'bbox': rle_codec.toBbox(rle).tolist(),
                'area': int(rle_codec.area(rle)),
                'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode('ascii')},
                'iscrowd': 0,
            }
        )
    return entries


def _dump(content: Any, path: Path) -> None:
    """Writes JSON as UTF-8 with a newline at the end."""
    path.write_text(json.dumps(content, indent=None if 'images' in content else 2) + '\n', encoding='utf-8')


def _write_split(root: Path, split: str, params: dict[str, int], bar: tqdm[Any]) -> None:
    """Draws one split and writes its images, label maps and COCO file beneath ``root``."""
    image_dir, label_dir = root / 'images' / SPLITS[split], root / 'annotations' / SPLITS[split]
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    images, annotations = [], []
    for index in range(params[split]):
        scene = scene_at(params['seed'], split, index, params['size'])
        entry = _image_entry(split, index, params['size'])
        # Full chroma resolution: with colour at half of it, edges between colours would bleed.
        Image.fromarray(scene.image).save(image_dir / entry['file_name'], quality=JPEG_QUALITY, subsampling=0)
        Image.fromarray(scene.label_map()).save(label_dir / f'{_stem(split, index)}.png')
        images.append(entry)
        annotations += _annotation_entries(scene, entry['id'])
        bar.update()
    coco = {
        # No date: it would make two runs differ.
        'info': {'description': f'Synthetic shapes, {split} split', 'version': str(FORMAT['version'])},
        'licenses': [
            {
                'id': 1,
                'name': 'CC0 1.0 Universal',
                'url': 'https://creativecommons.org/publicdomain/zero/1.0/',
            }
        ],
        'categories': [{'id': label, 'name': name, 'supercategory': 'shape'} for label, name in enumerate(CLASSES, 1)],
        'images': images,
        'annotations': annotations,
    }
    _dump(coco, root / 'annotations' / f'instances_{split}.json')


def _manifest(params: dict[str, int]) -> dict[str, Any]:
    """Returns what dataset.json says about a data set."""
    return {'format': FORMAT, 'classes': list(CLASSES), **params}


def _expected_files(params: dict[str, int]) -> set[str]:
    """Returns every file of a data set as a path relative to its root."""
    files = {'classes.txt', 'dataset.json'}
    for split, folder in SPLITS.items():
        files.add(f'annotations/instances_{split}.json')
        for index in range(params[split]):
            files.add(f'images/{folder}/{_stem(split, index)}.jpg')
            files.add(f'annotations/{folder}/{_stem(split, index)}.png')
    return files


def _present_files(root: Path) -> set[str]:
    """Returns every file and link beneath ``root`` as a path relative to it; links are not followed."""
    found = set()
    for folder, subfolders, files in os.walk(root):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        found.update(Path(folder, name).relative_to(root).as_posix() for name in (*files, *links))
    return found


def _read_params(root: Path) -> dict[str, int] | None:
    """Returns the parameters in dataset.json (of any format version), or None if it is not this tool's."""
    try:
        content = json.loads((root / 'dataset.json').read_text(encoding='utf-8'))
        params = {key: content[key] for key in ('train', 'val', 'size', 'seed')}
        known = content['format']['name'] == FORMAT['name']
        _check_params(params)
    except (OSError, ValueError, KeyError, TypeError, ShapesError):
        return None
    return params if known else None


def _is_complete(root: Path, params: dict[str, int]) -> bool:
    """Tells whether ``root`` holds exactly this data set: its dataset.json, all its files and no others."""
    try:
        content = json.loads((root / 'dataset.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return content == _manifest(params) and _present_files(root) == _expected_files(params)


def _check_replaceable(root: Path, params: dict[str, int], force: bool) -> set[str]:
    """Looks at what is in the way of a data set at ``root``.

    Returns:
        Files, relative to ``root``, that are not this tool's and are to be kept.

    Raises:
        ShapesError: Something there must not, or not without ``force``, be replaced.
    """
    if not root.exists():
        return set()
    if not root.is_dir():
        raise ShapesError(f'{root} is not a directory')
    present = _present_files(root)
    if not present and not any(root.iterdir()):
        return set()
    old = _read_params(root)
    if old is None:
        raise ShapesError(f'{root} holds files that this tool did not make; choose another directory')
    made = _expected_files(old)
    foreign = present - made
    if not force:
        if old != params:
            reason = 'a shapes data set with other parameters'
        elif foreign:
            reason = f'files that this tool did not make, such as {min(foreign)}'
        elif made - present:
            reason = f'an incomplete shapes data set, without {min(made - present)}'
        else:
            reason = 'a shapes data set of another format version'
        raise ShapesError(f'{root} holds {reason}; --force replaces the data set and keeps other files')
    clash = foreign & _expected_files(params)
    if clash:
        raise ShapesError(f'{root / min(clash)} is in the way and was not made by this tool')
    return foreign


def _check_params(params: dict[str, int]) -> None:
    """Raises ShapesError unless the parameters are integers in their ranges."""
    for name, value in params.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ShapesError(f'{name} must be an integer, not {value!r}')
    if params['size'] < MIN_SIZE:
        raise ShapesError(f'size must be at least {MIN_SIZE} pixels, not {params["size"]}')
    for split in SPLITS:
        if not 0 <= params[split] <= MAX_INDEX:
            raise ShapesError(f'{split} must be between 0 and {MAX_INDEX} images, not {params[split]}')
    if not any(params[split] for split in SPLITS):
        raise ShapesError('train and val are both 0: there is nothing to make')
    # A larger seed takes two words of the seed sequence and could meet another seed's scenes.
    if not 0 <= params['seed'] < 2**32:
        raise ShapesError(f'seed must be between 0 and {2**32 - 1}, not {params["seed"]}')


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """Yields a new folder beside ``root``, on the same file system, and removes it in the end."""
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f'.{root.name}.', suffix='.partial', dir=root.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_dataset(root: Path, params: dict[str, int], progress: bool) -> None:
    """Writes a whole data set into ``root``, which must not exist; dataset.json comes last."""
    root.mkdir()
    total = sum(params[split] for split in SPLITS)
    # disable=None: a bar on a terminal, silence in a log file.
    with tqdm(total=total, unit='image', disable=None if progress else True) as bar:
        for split in SPLITS:
            _write_split(root, split, params, bar)
    (root / 'classes.txt').write_text('\n'.join(('background', *CLASSES)) + '\n', encoding='utf-8')
    _dump(_manifest(params), root / 'dataset.json')


def _install(staged: Path, root: Path, scratch: Path, keep: set[str]) -> None:
    """Puts ``staged`` in the place of ``root``; files in ``keep`` are copied over first.

    The old tree is moved into ``scratch`` and is moved back if the new one cannot take its place.
    """
    if not root.exists():
        staged.rename(root)
        return
    made = _present_files(root) - keep

    def replaced(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder, name).relative_to(root).as_posix() in made]

    # A copy, not a move: until the trees are exchanged the old one stays whole.
    shutil.copytree(root, staged, symlinks=True, ignore=replaced, dirs_exist_ok=True)
    old = scratch / 'old'
    root.rename(old)
    try:
        staged.rename(root)
    except BaseException:
        old.rename(root)
        raise


def make_dataset(
    out: str | os.PathLike[str],
    *,
    train: int,
    val: int,
    size: int = 160,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> bool:
    """Makes the data set at ``out``, or finds that it is there already.

    It is built in a folder beside ``out`` and moved into place when it is complete.

    Args:
        out: Directory of the data set; it may be absent or empty.
        train: Number of training images.
        val: Number of validation images.
        size: Side of the images in pixels.
        seed: Seed of every scene, 0 to 2**32 - 1.
        force: Replace a data set that this tool made with other parameters. Other files are kept.
        progress: Show a progress bar if standard error is a terminal.

    Returns:
        True if the data set was written, False if exactly this one was there already.

    Raises:
        ShapesError: A parameter is out of range, or ``out`` holds something else.
        OSError: ``out`` cannot be written.
    """
    params = {'train': train, 'val': val, 'size': size, 'seed': seed}
    _check_params(params)
    params = {name: int(value) for name, value in params.items()}
    root = Path(out).resolve()
    if _is_complete(root, params):
        return False
    keep = _check_replaceable(root, params, force)
    with _scratch(root) as scratch:
        staged = scratch / 'new'
        _write_dataset(staged, params, progress)
        _install(staged, root, scratch, keep)
    return True


# ---------------------------------------------------------------------------------------------------------
# Preview and command line
# ---------------------------------------------------------------------------------------------------------


def _colour_masks(scene: Scene) -> NDArray[np.uint8]:
    """Returns the scene with every object tinted in its class colour and outlined, uint8, (S, S, 3)."""
    grey = scene.image.mean(axis=-1, keepdims=True)
    shown = np.repeat(0.6 * grey, 3, axis=-1)
    palette = np.array(((0, 0, 0), *CLASS_COLOURS))
    labels = scene.label_map()
    inside = labels > 0
    shown[inside] = 0.25 * grey[inside] + 0.75 * palette[labels[inside]]
    objects = np.zeros(labels.shape, np.uint8)
    for number, mask in enumerate(scene.masks, 1):
        objects[mask] = number
    shown[find_boundaries(objects, mode='inner')] = 255
    return shown.astype(np.uint8)


def draw_preview(seed: int, size: int, split: str = 'train') -> Image.Image:
    """Draws the first scenes of a split in a grid, each beside its coloured masks, above a legend.

    Args:
        seed: Seed of the data set.
        size: Side of the scenes in pixels.
        split: One of SPLITS.

    Returns:
        An RGB image with PREVIEW_SIDE rows of as many scenes.
    """
    gap = max(2, size // 20)
    font = ImageFont.load_default(max(12, size // 8))
    legend = font.size * 2
    cell = (2 * size + 1 + gap, size + gap)
    sheet = Image.new('RGB', (gap + PREVIEW_SIDE * cell[0], gap + PREVIEW_SIDE * cell[1] + legend), 'white')
    for index in range(PREVIEW_SIDE**2):
        scene = scene_at(seed, split, index, size)
        row, col = divmod(index, PREVIEW_SIDE)
        corner = (gap + col * cell[0], gap + row * cell[1])
        sheet.paste(Image.fromarray(scene.image), corner)
        sheet.paste(Image.fromarray(_colour_masks(scene)), (corner[0] + size + 1, corner[1]))
    pen = ImageDraw.Draw(sheet)
    top = sheet.height - legend + (legend - font.size - gap) // 2
    step = sheet.width // len(CLASSES)
    for index, name in enumerate(CLASSES):
        left = gap + index * step
        pen.rectangle((left, top, left + font.size, top + font.size), fill=CLASS_COLOURS[index])
        pen.text((left + font.size * 1.5, top + font.size / 2), name, fill='black', font=font, anchor='lm')
    return sheet


class _Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n')


def _build_parser() -> argparse.ArgumentParser:
    """Returns the command line of this tool."""
    parser = _Parser(
        prog='make_shapes',
        description='Make a synthetic data set of shapes for detection, instance and semantic segmentation.',
        allow_abbrev=False,
    )
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='directory of the data set')
    parser.add_argument('--train', type=int, default=2000, metavar='N', help='training images (%(default)s)')
    parser.add_argument('--val', type=int, default=200, metavar='N', help='validation images (%(default)s)')
    parser.add_argument('--size', type=int, default=160, metavar='S', help='side in pixels (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, metavar='K', help='seed (%(default)s)')
    parser.add_argument('--force', action='store_true', help='replace a shapes data set; keep other files')
    parser.add_argument(
        '--preview',
        type=Path,
        metavar='FILE.png',
        help='also draw the first training scenes with their masks',
    )
    return parser


def _check_preview(preview: Path, out: Path) -> None:
    """Raises ShapesError if the preview cannot be written, before any scene is drawn."""
    if preview.suffix.lower() != '.png':
        raise ShapesError(f'the preview must be a .png file, not {preview}')
    if not preview.resolve().parent.is_dir():
        raise ShapesError(f'the folder of the preview does not exist: {preview.resolve().parent}')
    if out.resolve() in preview.resolve().parents:
        raise ShapesError('the preview must lie outside the data set')


def _run(args: argparse.Namespace) -> None:
    """Does what the command line asks and says what was done."""
    if args.preview is not None:
        _check_preview(args.preview, args.out)
    start = time.perf_counter()
    written = make_dataset(
        args.out,
        train=args.train,
        val=args.val,
        size=args.size,
        seed=args.seed,
        force=args.force,
        progress=True,
    )
    if written:
        seconds = time.perf_counter() - start
        print(f'wrote {args.train} training and {args.val} validation images to {args.out} in {seconds:.1f} s')
    else:
        print(f'{args.out} holds this data set already: nothing to do')
    if args.preview is not None:
        draw_preview(args.seed, args.size).save(args.preview)
        print(f'wrote {args.preview}')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 2 (130 if interrupted) after one line on standard error."""
    args = _build_parser().parse_args(argv)
    try:
        _run(args)
    except ShapesError as error:
        print(f'make_shapes: error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'make_shapes: error: cannot write: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('make_shapes: interrupted', file=sys.stderr)
        return 130
    return 0
