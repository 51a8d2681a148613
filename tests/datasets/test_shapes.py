"""The shapes data set: what it promises about its scenes, its files and the folder it writes to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from pycocotools.coco import COCO

from cvt_dense.datasets import shapes

pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning:pycocotools.*')

TOOL = ROOT / 'tools' / 'make_shapes.py'
SIZE = 64


def make(out: Path, **changes: Any) -> bool:
    params: dict[str, Any] = {'train': 6, 'val': 3, 'size': SIZE, 'seed': 5, **changes}
    return shapes.make_dataset(out, **params)


def run(out: Path, *options: str) -> int:
    """Runs the command line; an option given again takes the place of the one here."""
    base = ['--out', str(out), '--train', '3', '--val', '1', '--size', str(SIZE), '--seed', '5']
    return shapes.main([*base, *options])


def read_tree(root: Path) -> dict[str, bytes]:
    """Returns the content of every file beneath ``root`` by its relative path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a data set of 40 + 10 images that no test may change."""
    root = tmp_path_factory.mktemp('shapes') / 'set'
    assert make(root, train=40, val=10)
    return root


# --- scenes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [32, 64, 160])
def test_scene_keeps_its_promises(size: int) -> None:
    for index in range(25):
        scene = shapes.scene_at(1, 'train', index, size)
        count = len(scene.labels)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (count, size, size)
        assert scene.masks.dtype == bool
        assert shapes.MIN_OBJECTS <= count <= shapes.MAX_OBJECTS
        assert scene.labels.min() >= 1
        assert scene.labels.max() <= len(shapes.CLASSES)
        assert scene.masks.sum(axis=0).max() == 1, 'no pixel belongs to two objects'
        visible = scene.masks.sum(axis=(1, 2))
        assert (visible >= shapes.MIN_PIXELS).all()
        assert (visible >= shapes.MIN_PIXEL_SHARE * size**2).all()
        assert (visible <= scene.full_areas).all()
        assert (visible >= shapes.MIN_VISIBLE * scene.full_areas).all()


def test_scenes_have_occlusion_cuts_and_every_class() -> None:
    scenes = [shapes.scene_at(2, 'train', index, SIZE) for index in range(60)]
    assert any((scene.masks.sum(axis=(1, 2)) < scene.full_areas).any() for scene in scenes)
    assert any(scene.masks[:, 0].any() or scene.masks[:, :, 0].any() for scene in scenes)
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=6)
    assert counts[0] == 0
    assert counts[1:].min() > 0.5 * counts[1:].mean()


def test_full_area_is_the_area_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the mask of each object as it was put there, before anything came over it."""
    fresh: list[int] = []
    put_object = shapes._put_object

    def watch(canvas: Any, masks: Any, *others: Any) -> bool:
        done = put_object(canvas, masks, *others)
        if done:
            fresh.append(int(masks[-1].sum()))
        return done

    monkeypatch.setattr(shapes, '_put_object', watch)
    scene = shapes.scene_at(3, 'train', 0, SIZE)
    assert scene.full_areas.tolist() == fresh


def test_object_on_top_hides_what_is_beneath() -> None:
    beneath = [np.ones((20, 20), bool)]
    top = np.ones((20, 20), bool)
    top[:, :6] = False  # leaves exactly 30%
    assert shapes._leaves_visible(top, beneath, [400])
    top[0, 0] = True
    assert not shapes._leaves_visible(top, beneath, [400])
    assert not shapes._leaves_visible(np.ones((20, 20), bool), beneath, [400])


@pytest.mark.parametrize('name', shapes.CLASSES)
def test_outline_is_drawn_where_it_is(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        outline = shapes._outline(name, rng)
        assert all(np.linalg.norm(points, axis=1).max() <= 1 + 1e-9 for points in outline)
        placed = [30 * points + 50 for points in outline]
        area = shapes._area(placed[0]) - sum(shapes._area(hole) for hole in placed[1:])
        coverage = shapes._coverage(placed, 100)
        assert coverage.sum() == pytest.approx(area, rel=0.06)
        rows, cols = np.mgrid[:100, :100] + 0.5
        middle = (coverage * cols).sum() / coverage.sum(), (coverage * rows).sum() / coverage.sum()
        if name != 'triangle':  # all others are symmetric about their centre
            assert middle == pytest.approx((50, 50), abs=0.2)


def test_outlines_of_the_classes_differ() -> None:
    """The covered share of the circumscribed circle, and whether its centre is covered."""
    rng = np.random.default_rng(0)
    share, centre = {}, {}
    for name in shapes.CLASSES:
        drawn = [shapes._coverage([40 * points + 50 for points in shapes._outline(name, rng)], 100) for _ in range(30)]
        share[name] = [coverage.sum() / (np.pi * 40**2) for coverage in drawn]
        centre[name] = {float(coverage[50, 50]) for coverage in drawn}
    assert min(share['ellipse']) > max(share['rectangle']) - 0.02
    assert min(share['rectangle']) > max(share['triangle'])
    assert centre['ring'] == {0.0}
    assert all(centre[name] == {1.0} for name in shapes.CLASSES if name != 'ring')


def test_unknown_class_is_an_error() -> None:
    with pytest.raises(ValueError, match='unknown class'):
        shapes._outline('hexagon', np.random.default_rng(0))


def test_object_like_its_ground_does_not_stand_out() -> None:
    mask = np.ones((10, 10), bool)
    grey, near, far = (np.full((10, 10, 3), value) for value in (0.5, 0.52, 0.9))
    assert not shapes._stands_out(near, grey, mask)
    assert shapes._stands_out(far, grey, mask)
    assert not shapes._stands_out(far, grey, ~mask)


# --- determinism -----------------------------------------------------------------------------------------


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
    for split in shapes.SPLITS:
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


# --- annotations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(('split', 'count'), [('train', 40), ('val', 10)])
def test_coco_agrees_with_images_and_label_maps(dataset: Path, split: str, count: int) -> None:
    coco = COCO(dataset / 'annotations' / f'instances_{split}.json')
    folder = shapes.SPLITS[split]
    assert len(coco.imgs) == count
    assert [(cat['id'], cat['name']) for cat in coco.loadCats(coco.getCatIds())] == list(enumerate(shapes.CLASSES, 1))
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
    for split in shapes.SPLITS:
        content = json.loads((dataset / 'annotations' / f'instances_{split}.json').read_text())
        images += [entry['id'] for entry in content['images']]
        annotations += [entry['id'] for entry in content['annotations']]
    assert len(set(images)) == len(images) == 50
    assert len(set(annotations)) == len(annotations)
    assert min(images + annotations) >= 1, 'pycocotools takes annotation id 0 for "no match"'


def test_files_hold_the_scenes(dataset: Path) -> None:
    scene, other = (shapes.scene_at(5, 'val', index, SIZE) for index in (4, 5))
    with Image.open(dataset / 'images/validation/val_000004.jpg') as image:
        pixels = np.array(image, dtype=int)
    # JPEG takes away some of the noise and nothing else: far less than the way to another scene.
    assert np.abs(pixels - scene.image).mean() < 5
    assert np.abs(pixels - other.image).mean() > 25
    with Image.open(dataset / 'annotations/validation/val_000004.png') as image:
        assert (np.array(image) == scene.label_map()).all()


def test_classes_and_manifest(dataset: Path) -> None:
    assert (dataset / 'classes.txt').read_text().split() == ['background', *shapes.CLASSES]
    manifest = json.loads((dataset / 'dataset.json').read_text())
    assert (manifest['train'], manifest['val'], manifest['size'], manifest['seed']) == (40, 10, SIZE, 5)


def test_empty_split_still_loads(tmp_path: Path) -> None:
    make(tmp_path / 'set', val=0)
    assert not COCO(tmp_path / 'set/annotations/instances_val.json').imgs


# --- the folder ------------------------------------------------------------------------------------------


def test_same_set_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'set'
    assert run(out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    capsys.readouterr()
    assert run(out) == 0
    assert 'nothing to do' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before
    assert os.listdir(tmp_path) == ['set']


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
        ({'options': ['--train', '4']}, 'other parameters'),
        ({'options': ['--seed', '6']}, 'other parameters'),
        ({'write': 'images/training/mine.jpg'}, 'files that this tool did not make'),
        ({'remove': 'images/training/train_000001.jpg'}, 'incomplete'),
        ({'version': 0}, 'another format version'),
    ],
)
def test_anything_else_is_refused_and_replaced_by_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: dict[str, Any], words: str
) -> None:
    out = tmp_path / 'set'
    assert run(out) == 0
    if 'write' in harm:
        (out / harm['write']).write_bytes(b'mine')
    if 'remove' in harm:
        (out / harm['remove']).unlink()
    if 'version' in harm:
        manifest = json.loads((out / 'dataset.json').read_text())
        manifest['format']['version'] = harm['version']
        (out / 'dataset.json').write_text(json.dumps(manifest))
    options = harm.get('options', [])
    before = read_tree(out)
    capsys.readouterr()

    assert run(out, *options) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count('\n') == 1
    assert read_tree(out) == before

    assert run(out, *options, '--force') == 0
    run(tmp_path / 'fresh', *options)
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
    with pytest.raises(shapes.ShapesError, match='did not make'):
        make(foreign, force=True)
    assert read_tree(foreign) == before

    mixed = tmp_path / 'mixed'
    make(mixed, train=2)
    (mixed / 'images/training/train_000002.jpg').write_text('precious')
    before = read_tree(mixed)
    with pytest.raises(shapes.ShapesError, match='in the way'):
        make(mixed, train=3, force=True)
    assert read_tree(mixed) == before


@pytest.mark.parametrize('content', ['', '[]', '{}', '{"format": 1, "train": 1, "val": 1, "size": 64, "seed": 0}'])
def test_foreign_manifest_is_not_taken_for_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / 'dataset.json').write_text(content)
    with pytest.raises(shapes.ShapesError, match='did not make'):
        make(tmp_path, force=True)


# --- interruptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
@pytest.mark.parametrize('force', [False, True])
def test_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, force: bool
) -> None:
    out = tmp_path / 'set'
    if force:
        make(out, train=2)
    before = read_tree(tmp_path)
    scene_at = shapes.scene_at

    def fail_at_last(seed: int, split: str, index: int, size: int) -> Any:
        if (split, index) == ('val', 2):
            raise error
        return scene_at(seed, split, index, size)

    monkeypatch.setattr(shapes, 'scene_at', fail_at_last)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        make(out, force=force)
    assert read_tree(tmp_path) == before
    assert os.listdir(tmp_path) == (['set'] if force else [])


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


@pytest.mark.skipif(os.name == 'nt', reason='SIGTERM cannot be caught on Windows')
def test_terminated_run_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), '--out', str(tmp_path / 'set'), '--train', '100000']
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob('*.jpg')) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().endswith('make_shapes: interrupted')
    assert not os.listdir(tmp_path)


# --- command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--size', '31'], 'size must be at least 32'),
        (['--train', '-1'], 'train must be between 0'),
        (['--val', '-5'], 'val must be between 0'),
        (['--train', '0', '--val', '0'], 'nothing to make'),
        (['--seed', '-1'], 'seed must be between 0'),
        (['--seed', str(2**32)], 'seed must be between 0'),
        (['--preview', 'preview.gif'], 'must be a .png file'),
        (['--preview', 'no/such/folder/p.png'], 'folder of the preview does not exist'),
    ],
)
def test_bad_value_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run(tmp_path / 'set', *options) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count('\n') == 1
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('options', [['--size', 'big'], ['--trian', '3'], ['--train']])
def test_bad_option_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(tmp_path / 'set', *options)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_unwritable_place_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'file').write_text('x')
    assert run(tmp_path / 'file') == 2
    assert run(tmp_path / 'file' / 'set') == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert 'is not a directory' in errors[0]
    assert 'cannot write' in errors[1]
    assert (tmp_path / 'file').read_text() == 'x'


@pytest.mark.parametrize('params', [{'train': 1.5}, {'size': '64'}, {'seed': None}, {'val': True}])
def test_python_call_checks_types(tmp_path: Path, params: dict[str, Any]) -> None:
    with pytest.raises(shapes.ShapesError, match='must be an integer'):
        make(tmp_path / 'set', **params)


def test_too_small_scene_is_an_error() -> None:
    with pytest.raises(shapes.ShapesError, match='at least 32'):
        shapes.draw_scene(np.random.default_rng(0), 31)


def test_preview(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, preview = tmp_path / 'set', tmp_path / 'preview.png'
    assert run(out, '--preview', str(preview)) == 0
    with Image.open(preview) as image:
        assert image.mode == 'RGB'
        assert image.width > 8 * SIZE
        first = np.array(image)[3 : 3 + SIZE, 3 : 3 + SIZE]
    assert (first == shapes.scene_at(5, 'train', 0, SIZE).image).all()
    assert run(out, '--preview', str(out / 'preview.png')) == 2
    assert 'outside the data set' in capsys.readouterr().err
