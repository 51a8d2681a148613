"""Write the shapes data set: the same scenes for detection, instance and semantic segmentation.

    DIR/images/training/train_000000.jpg               RGB scenes, JPEG quality 95, no chroma subsampling
    DIR/images/validation/val_000000.jpg
    DIR/annotations/instances_train.json               COCO instances: category ids 1..C, compressed RLE
    DIR/annotations/instances_val.json                 of the visible part, its box and its area
    DIR/annotations/training/train_000000.png          label maps: one uint8 channel, 0 = background,
    DIR/annotations/validation/val_000000.png          1..C = CLASSES in order
    DIR/classes.txt                                    one name a line: background, then CLASSES
    DIR/dataset.json                                   the manifest: parameters and format version

The folders and suffixes are those of ADE20K, but label 0 is a class of its own here: background. Train
with ``reduce_zero_label=False`` and ``classes=('background', *CLASSES)``.
"""

from __future__ import annotations

import json
import operator
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec
from tqdm import tqdm

from ..errors import UserError
from .shapes import CLASSES, SPLITS, Scene, check_scene, scene_at

FOLDERS = {'train': 'training', 'val': 'validation'}
#: Identifies the data set in its manifest; raise the version when equal parameters give other files.
FORMAT = {'name': 'shapes', 'version': 1}
PARAMETERS = ('train', 'val', 'size', 'seed')
MAX_INDEX = 10_000_000  # images in a split; keeps image ids of the splits apart
JPEG_QUALITY = 95

Manifest = Mapping[str, Any]


def make_dataset(
    out: str | os.PathLike[str], *, train: int, val: int, size: int = 160, seed: int = 0, force: bool = False
) -> bool:
    """Make the data set, unless it is there already.

    It is built in a hidden folder beside ``out``, ``.NAME.*.partial``, and moved into place when it is complete; a
    process that is killed leaves that folder behind. A bar shows the progress if standard error is a terminal.

    Args:
        out: Folder of the data set; it may be absent or empty.
        train: Number of training images.
        val: Number of validation images.
        size: Side of the images in pixels.
        seed: Seed of every scene, 0 to 2**32 - 1.
        force: Replace a data set of this format that differs. Other files in its folder are kept.

    Returns:
        True if the data set was written, False if exactly this one was there already.

    Raises:
        TypeError: If a number is not an integer.
        UserError: If a number is out of range, or ``out`` holds something else.
        OSError: If ``out`` cannot be written.
    """
    train, val, size, seed = map(operator.index, (train, val, size, seed))
    check_scene(seed, size)
    for split, count in (('train', train), ('val', val)):
        if not 0 <= count <= MAX_INDEX:
            raise UserError(f'{split} must be between 0 and {MAX_INDEX} images, not {count}')
    if train == val == 0:
        raise UserError('train and val are both 0: there is nothing to make')

    root = Path(out).resolve()
    manifest = dict(format=FORMAT, classes=list(CLASSES), train=train, val=val, size=size, seed=seed)
    old, present = _read_manifest(root), _files_below(root)
    if old == manifest and present == _files_of(manifest):
        return False
    kept = _check_replaceable(root, present, old, manifest, force)
    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory('.partial', f'.{root.name}.', root.parent, ignore_cleanup_errors=True) as scratch:
        new = Path(scratch, 'new')
        _write(new, manifest)
        _put_in_place(new, root, present - kept)
    return True


def _read_manifest(root: Path) -> Manifest | None:
    """The manifest of a data set of any version of this format, None if ``root`` holds none."""
    try:
        manifest = json.loads((root / 'dataset.json').read_text(encoding='utf-8'))
        if manifest['format']['name'] == FORMAT['name'] and all(type(manifest[key]) is int for key in PARAMETERS):
            return manifest
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return None


def _paths(split: str, index: int) -> tuple[str, str]:
    """Image and label map of a scene, relative to the root."""
    folder, stem = FOLDERS[split], f'{split}_{index:06d}'
    return f'images/{folder}/{stem}.jpg', f'annotations/{folder}/{stem}.png'


def _files_of(manifest: Manifest) -> set[str]:
    """Every file of a data set, relative to its root."""
    files = {'classes.txt', 'dataset.json', *(f'annotations/instances_{split}.json' for split in SPLITS)}
    return files.union(*(_paths(split, index) for split in SPLITS for index in range(manifest[split])))


def _files_below(root: Path) -> set[str]:
    """Every file and link below ``root``, relative to it; links are not followed."""
    found = (path for path in root.rglob('*') if path.is_symlink() or not path.is_dir())
    return {path.relative_to(root).as_posix() for path in found}


def _check_replaceable(root: Path, present: set[str], old: Manifest | None, new: Manifest, force: bool) -> set[str]:
    """Decide whether a data set may take the place of what is present.

    Returns:
        The files that do not belong to the old data set, and are kept.

    Raises:
        UserError: If something must not, or not without ``force``, be replaced.
        NotADirectoryError: If ``root`` is a file.
    """
    if not root.exists() or not any(root.iterdir()):
        return set()
    if old is None:
        raise UserError(f'{root} holds files that this tool did not make; choose another folder')
    made = _files_of(old)
    foreign, missing = present - made, made - present
    if not force:
        if any(old[key] != new[key] for key in PARAMETERS):
            found = 'a shapes data set with other parameters'
        elif foreign:
            found = f'files that this tool did not make, such as {min(foreign)}'
        elif missing:
            found = f'an incomplete shapes data set, without {min(missing)}'
        else:
            found = 'a shapes data set of another format version'
        raise UserError(f'{root} holds {found}; --force replaces the data set and keeps other files')
    if clash := foreign & _files_of(new):
        raise UserError(f'{root / min(clash)} is in the way and was not made by this tool')
    return foreign


def _put_in_place(new: Path, root: Path, replaced: set[str]) -> None:
    """Exchange ``root`` for ``new``, which takes over what is in ``root`` except for some files."""
    if not root.exists():
        new.rename(root)
        return

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder, name).relative_to(root).as_posix() in replaced]

    # A copy, not a move: until the folders are exchanged, the old one stays whole.
    shutil.copytree(root, new, symlinks=True, ignore=ignore, dirs_exist_ok=True)
    old = new.with_name('old')
    root.rename(old)
    try:
        new.rename(root)
    except BaseException:
        old.rename(root)
        raise


def _write(root: Path, manifest: Manifest) -> None:
    """Write a whole data set into ``root``, which must not exist."""
    root.mkdir()
    for split in SPLITS:
        _write_split(root, split, manifest)
    (root / 'classes.txt').write_text('\n'.join(('background', *CLASSES)) + '\n', encoding='utf-8')
    (root / 'dataset.json').write_text(json.dumps(manifest, indent=2) + '\n', encoding='utf-8')


def _write_split(root: Path, split: str, manifest: Manifest) -> None:
    """Draw one split and write its images, label maps and COCO file below ``root``."""
    for kind in ('images', 'annotations'):
        (root / kind / FOLDERS[split]).mkdir(parents=True)
    images, annotations = [], []
    # disable=None: a bar on a terminal, silence in a log file
    for index in tqdm(range(manifest[split]), desc=split, unit='image', disable=None):
        scene = scene_at(manifest['seed'], split, index, manifest['size'])
        image_path, label_path = (root / path for path in _paths(split, index))
        # Full chroma resolution: with colour at half of it, edges between colours would bleed.
        Image.fromarray(scene.image).save(image_path, quality=JPEG_QUALITY, subsampling=0)
        Image.fromarray(scene.label_map()).save(label_path)
        image_id = SPLITS.index(split) * MAX_INDEX + index + 1  # unique across the splits
        height, width = scene.image.shape[:2]
        images.append({'id': image_id, 'file_name': image_path.name, 'width': width, 'height': height, 'license': 1})
        annotations += _annotations(scene, image_id)
    license_ = {'id': 1, 'name': 'CC0 1.0 Universal', 'url': 'https://creativecommons.org/publicdomain/zero/1.0/'}
    coco = {
        # No date: it would make two runs differ.
        'info': {'description': f'Synthetic shapes, {split} split', 'version': str(FORMAT['version'])},
        'licenses': [license_],
        'categories': [{'id': label, 'name': name, 'supercategory': 'shape'} for label, name in enumerate(CLASSES, 1)],
        'images': images,
        'annotations': annotations,
    }
    (root / f'annotations/instances_{split}.json').write_text(json.dumps(coco) + '\n', encoding='utf-8')


def _annotations(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """COCO's records of the objects of a scene, masks as compressed RLE, boxes as [x, y, w, h]."""
    records = []
    for index, (label, mask) in enumerate(zip(scene.labels.tolist(), scene.masks)):
        rle = rle_codec.encode(np.asfortranarray(mask, dtype=np.uint8))
        records.append(
            {
                # From the image id, not a running count: the same whatever the size of the split.
                'id': image_id * 10 + index,
                'image_id': image_id,
                'category_id': label,
                'bbox': rle_codec.toBbox(rle).tolist(),
                'area': int(rle_codec.area(rle)),
                'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode('ascii')},
                'iscrowd': 0,
            }
        )
    return records
