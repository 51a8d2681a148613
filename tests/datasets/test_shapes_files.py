"""The shapes data set on disk: its files, their determinism, and the folder that it is written to."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image
from pycocotools.coco import COCO

from cvt_dense.datasets import shapes_files
from cvt_dense.datasets.shapes import CLASSES, SPLITS, Scene, scene_at
from cvt_dense.errors import UserError

pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning:pycocotools.*')

SIZE = 64


def make(out: Path, **changes: Any) -> bool:
    params: dict[str, Any] = {'train': 6, 'val': 3, 'size': SIZE, 'seed': 5, **changes}
    return shapes_files.make_dataset(out, **params)


def read_tree(root: Path) -> dict[str, bytes]:
    """Returns the content of every file beneath ``root`` by its relative path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a data set of 40 + 10 images that no test may change."""
    root = tmp_path_factory.mktemp('shapes') / 'set'
    assert make(root, train=40, val=10)
    return root


# --- determinism ---


def test_second_run_writes_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    assert make(tmp_path / 'again', train=40, val=10)
    assert read_tree(tmp_path / 'again') == read_tree(dataset)


def test_smaller_set_is_a_prefix(dataset: Path, tmp_path: Path) -> None:
    small = tmp_path / 'small'
    make(small, train=7, val=2)
    long, short = read_tree(dataset), read_tree(small)
    pictures = [name for name in short if name.endswith(('.jpg', '.png'))]
    assert len(pictures) == 2 * (7 + 2)
    assert all(short[name] == long[name] for name in pictures)
    for split in SPLITS:
        name = f'annotations/instances_{split}.json'
        less, more = json.loads(short[name]), json.loads(long[name])
        for key in ('images', 'annotations'):
            assert less[key] == more[key][: len(less[key])]


def test_seed_and_split_change_every_scene(dataset: Path, tmp_path: Path) -> None:
    make(tmp_path / 'other', train=10, val=10, seed=6)
    trees = read_tree(dataset), read_tree(tmp_path / 'other')
    images = [content for tree in trees for name, content in tree.items() if name.endswith('.jpg')]
    assert len(images) == 50 + 20
    assert len(set(images)) == len(images), 'train, val and the other seed share no scene'


@pytest.mark.skipif(
    tuple(map(int, PIL.__version__.split('.')[:2])) < (11, 3), reason='older Pillow draws polygons in another way'
)
@pytest.mark.parametrize(
    ('name', 'digest'),
    [
        ('annotations/instances_train.json', 'e91d284b7960f236c6fedde760cb88636cd7fa5d509f9abf2ce8962ba44307c0'),
        ('annotations/instances_val.json', '35c97a29bb84b146c95951c5e3f8e134e73705a46bfd3004cab42a477443bb74'),
        ('dataset.json', '88be3581f8766a475178dad25ec5188a4655519fdd24fef548f716d95b3fb8df'),
    ],
)
def test_annotations_are_those_of_format_version_1(dataset: Path, name: str, digest: str) -> None:
    assert hashlib.sha256((dataset / name).read_bytes()).hexdigest() == digest


# --- annotations ---


@pytest.mark.parametrize(('split', 'count'), [('train', 40), ('val', 10)])
def test_coco_agrees_with_images_and_label_maps(dataset: Path, split: str, count: int) -> None:
    coco = COCO(dataset / 'annotations' / f'instances_{split}.json')
    folder = shapes_files.FOLDERS[split]
    assert len(coco.imgs) == count
    assert [(cat['id'], cat['name']) for cat in coco.loadCats(coco.getCatIds())] == list(enumerate(CLASSES, 1))
    assert {'info', 'licenses'} <= coco.dataset.keys()
    assert len(list((dataset / 'images' / folder).iterdir())) == count
    for image_id, entry in coco.imgs.items():
        name = Path(entry['file_name'])
        with Image.open(dataset / 'images' / folder / name) as image:
            assert (image.mode, image.size) == ('RGB', (entry['width'], entry['height']))
        with Image.open(dataset / 'annotations' / folder / f'{name.stem}.png') as image:
            assert image.mode == 'L'
            labels = np.array(image)
        union = np.zeros_like(labels)
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            mask = coco.annToMask(annotation).astype(bool)
            rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y = int(cols[0]), int(rows[0])
            assert annotation['bbox'] == [x, y, cols[-1] + 1 - x, rows[-1] + 1 - y]
            assert all(type(value) is float for value in annotation['bbox'])
            assert annotation['area'] == mask.sum()
            assert annotation['iscrowd'] == 0
            assert isinstance(annotation['segmentation']['counts'], str)
            assert not union[mask].any()
            union[mask] = annotation['category_id']
        assert (union == labels).all()


def test_ids_are_unique_across_splits(dataset: Path) -> None:
    images, annotations = [], []
    for split in SPLITS:
        content = json.loads((dataset / 'annotations' / f'instances_{split}.json').read_text())
        images += [entry['id'] for entry in content['images']]
        annotations += [entry['id'] for entry in content['annotations']]
    assert len(set(images)) == len(images) == 50
    assert len(set(annotations)) == len(annotations)
    assert min(images + annotations) >= 1, 'pycocotools takes annotation id 0 for "no match"'


def test_files_hold_the_scenes(dataset: Path) -> None:
    scene, other = (scene_at(5, 'val', index, SIZE) for index in (4, 5))
    with Image.open(dataset / 'images/validation/val_000004.jpg') as image:
        pixels = np.array(image, dtype=int)
    # JPEG takes away some of the noise and nothing else: far less than the way to another scene.
    assert np.abs(pixels - scene.image).mean() < 5
    assert np.abs(pixels - other.image).mean() > 25
    with Image.open(dataset / 'annotations/validation/val_000004.png') as image:
        assert (np.array(image) == scene.label_map()).all()


def test_classes_and_manifest(dataset: Path) -> None:
    assert (dataset / 'classes.txt').read_text().split() == ['background', *CLASSES]
    manifest = json.loads((dataset / 'dataset.json').read_text())
    assert (manifest['train'], manifest['val'], manifest['size'], manifest['seed']) == (40, 10, SIZE, 5)


def test_empty_split_still_loads(tmp_path: Path) -> None:
    make(tmp_path / 'set', val=0)
    assert not COCO(tmp_path / 'set/annotations/instances_val.json').imgs


# --- the folder ---


def test_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    assert make(tmp_path / 'empty')
    assert make(tmp_path / 'a/b/set')
    assert read_tree(tmp_path / 'empty') == read_tree(tmp_path / 'a/b/set')


def test_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / 'plain').mkdir()
    make(tmp_path / 'set')
    assert (tmp_path / 'set').stat().st_mode == (tmp_path / 'plain').stat().st_mode


@pytest.mark.parametrize(
    ('harm', 'words'),
    [
        ({'changes': {'train': 4}}, 'other parameters'),
        ({'changes': {'seed': 6}}, 'other parameters'),
        ({'write': 'images/training/mine.jpg'}, 'files that this tool did not make'),
        ({'remove': 'images/training/train_000001.jpg'}, 'incomplete'),
        ({'version': 0}, 'another format version'),
    ],
)
def test_anything_else_is_refused_and_replaced_by_force(tmp_path: Path, harm: dict[str, Any], words: str) -> None:
    out = tmp_path / 'set'
    assert make(out)
    if 'write' in harm:
        (out / harm['write']).write_bytes(b'mine')
    if 'remove' in harm:
        (out / harm['remove']).unlink()
    if 'version' in harm:
        manifest = json.loads((out / 'dataset.json').read_text())
        manifest['format']['version'] = harm['version']
        (out / 'dataset.json').write_text(json.dumps(manifest))
    changes = harm.get('changes', {})
    before = read_tree(out)

    with pytest.raises(UserError, match=words):
        make(out, **changes)
    assert read_tree(out) == before

    assert make(out, **changes, force=True)
    make(tmp_path / 'fresh', **changes)
    wanted = read_tree(tmp_path / 'fresh')
    if 'write' in harm:
        wanted[harm['write']] = b'mine'
    assert read_tree(out) == wanted
    assert sorted(os.listdir(tmp_path)) == ['fresh', 'set'], 'nothing is left beside them'


def test_force_keeps_links_and_folders(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / 'set', tmp_path / 'elsewhere'
    make(out)
    elsewhere.mkdir()
    (elsewhere / 'precious').write_text('x')
    (out / 'link').symlink_to(elsewhere, target_is_directory=True)
    (out / 'notes').mkdir()
    assert make(out, train=2, force=True)
    assert (out / 'link').is_symlink()
    assert (out / 'notes').is_dir()
    assert (elsewhere / 'precious').read_text() == 'x'
    assert len(list((out / 'images/training').iterdir())) == 2


def test_force_does_not_overwrite_what_is_not_its_own(tmp_path: Path) -> None:
    foreign = tmp_path / 'coco'
    (foreign / 'annotations').mkdir(parents=True)
    (foreign / 'annotations/instances_train.json').write_text('precious')
    before = read_tree(foreign)
    with pytest.raises(UserError, match='did not make'):
        make(foreign, force=True)
    assert read_tree(foreign) == before

    mixed = tmp_path / 'mixed'
    make(mixed, train=2)
    (mixed / 'images/training/train_000002.jpg').write_text('precious')
    before = read_tree(mixed)
    with pytest.raises(UserError, match='in the way'):
        make(mixed, train=3, force=True)
    assert read_tree(mixed) == before


@pytest.mark.parametrize('content', ['', '[]', '{}', '{"format": 1, "train": 1, "val": 1, "size": 64, "seed": 0}'])
def test_foreign_manifest_is_not_taken_for_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / 'dataset.json').write_text(content)
    with pytest.raises(UserError, match='did not make'):
        make(tmp_path, force=True)


@pytest.mark.parametrize('params', [{'train': 1.5}, {'size': '64'}, {'seed': None}])
def test_numbers_have_to_be_integers(tmp_path: Path, params: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match='cannot be interpreted as an integer'):
        make(tmp_path / 'set', **params)
    assert not os.listdir(tmp_path)


# --- interruptions ---


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
@pytest.mark.parametrize('force', [False, True])
def test_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, force: bool
) -> None:
    out = tmp_path / 'set'
    if force:
        make(out, train=2)
    before = read_tree(tmp_path)

    def fail_at_last(seed: int, split: str, index: int, size: int) -> Scene:
        if (split, index) == ('val', 2):
            raise error
        return scene_at(seed, split, index, size)

    monkeypatch.setattr(shapes_files, 'scene_at', fail_at_last)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        make(out, force=force)
    assert read_tree(tmp_path) == before
    assert os.listdir(tmp_path) == (['set'] if force else [])


def test_no_part_of_a_set_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a run that is killed leaves nothing that is taken for a data set."""
    out, states = tmp_path / 'set', []

    def look(*args: Any) -> Scene:
        states.append(read_tree(out))
        return scene_at(*args)

    monkeypatch.setattr(shapes_files, 'scene_at', look)
    make(out)
    assert states == [{}] * 9
    old = read_tree(out)
    states.clear()
    make(out, seed=6, force=True)
    assert states == [old] * 9


def test_failed_exchange_brings_the_old_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / 'set'
    make(out, train=2)
    before = read_tree(tmp_path)
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.name == 'new':
            raise PermissionError(13, 'Permission denied')
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', fail_for_new)
    with pytest.raises(PermissionError):
        make(out, force=True)
    assert read_tree(tmp_path) == before
