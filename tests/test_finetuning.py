"""The page on fine-tuning, followed to the letter: with data that are no example of the project's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import documents
import pytest
from paths import ROOT
from tool_processes import run_tool

from cvt_dense.datasets.shapes import CLASSES
from cvt_dense.datasets.shapes_files import FOLDERS, make_dataset

#: The config that each kind of data is trained by, with what the page says to take as its base without a GPU.
MASKS, BOXES, LABEL_MAPS = (
    ('configs/maskrcnn_cvt13_fpn_custom.py', 'maskrcnn_cvttiny_fpn_shapes.py'),
    ('configs/fasterrcnn_cvt13_fpn_custom.py', 'fasterrcnn_cvttiny_fpn_shapes.py'),
    ('configs/upernet_cvt13_custom.py', 'upernet_cvttiny_shapes.py'),
)
#: Two images of each part; nothing that the page speaks of.
FEW = """
randomness = dict(seed=0)
for loader in (train_dataloader, val_dataloader, test_dataloader):
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader['dataset']['indices'] = 2
"""


def documented_commands() -> list[str]:
    """The commands of the page that stand one a line."""
    lines = ''.join(documents.blocks(ROOT / 'docs/finetuning.md', 'bash')).splitlines()
    return [line for line in lines if 'configs/mine.py' in line]


def follow(checkout: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the page in a checkout."""
    words = shlex.split(line)
    env = dict(os.environ)
    while '=' in words[0]:
        name, _, value = words.pop(0).partition('=')
        env[name] = value
    if words[0] == 'python':
        return run_tool(words[1:], cwd=checkout, env=env)
    return subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True, timeout=60, check=False)


def edit(config: Path, **settings: str) -> None:
    """Change assignments at the top of a config, as a reader does."""
    text = config.read_text()
    for names, values in settings.items():
        text, count = re.subn(
            rf'^{names.replace("__", ", ")} = [^#\n]*', f'{names.replace("__", ", ")} = {values}  ', text, flags=re.M
        )
        assert count == 1, names
    config.write_text(text)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / 'a checkout'
    folder.mkdir()
    shutil.copytree(ROOT / 'configs', folder / 'configs')
    (folder / 'tools').symlink_to(ROOT / 'tools')
    return folder


def walk(checkout: Path, data: Path, kind: tuple[str, str], metric: str, last: str, images: str, **edits: str) -> Path:
    """Follow the page from a folder of data to pictures, without a GPU.

    Args:
        checkout: Where it is followed.
        data: The folder.
        kind: The config that the page names for it, and the base for a CPU.
        metric: What an evaluation ends with.
        last: Name of the last checkpoint.
        images: Folder of those to predict, below ``data/custom``.
        edits: Lines of the config, as :func:`edit` takes them.

    Returns:
        The folder of predictions.
    """
    custom, base = kind
    copy, doctor, train, test, predict = (
        line.replace(MASKS[0], custom).replace('epoch_12.pth', last).replace('custom/val', f'custom/{images}')
        for line in documented_commands()
    )
    (checkout / 'data').mkdir()
    (checkout / 'data/custom').symlink_to(data)
    assert follow(checkout, copy).returncode == 0
    config = checkout / 'configs/mine.py'
    edit(config, _base_=repr(base), **edits)
    config.write_text(config.read_text() + FEW)
    looked = follow(checkout, doctor)
    assert looked.returncode == 0, looked.stdout
    assert 'FAIL' not in looked.stdout
    for line in (f'{train} --cfg-options default_hooks.logger.interval=1', test):
        done = follow(checkout, line)
        assert done.returncode == 0, done.stderr[-3000:]
        assert metric in done.stdout + done.stderr
    work_dir = checkout / 'work_dirs/mine'
    assert (work_dir / 'curves.png').is_file()
    assert list(work_dir.glob('best_*.pth'))
    predicted = follow(checkout, f'{predict} --score-thr 0' if 'epoch' in last else predict)
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    return checkout / 'predictions'


@pytest.mark.slow
def test_masks_from_a_folder_to_pictures(checkout: Path, data: Path) -> None:
    predictions = walk(
        checkout,
        data / 'nuclei',
        MASKS,
        'coco/segm_mAP',
        'epoch_1.pth',
        'val/' + min(path.name for path in (data / 'nuclei/val').iterdir()),
        train_annotations__train_images="'instances_train.json', 'train/'",
        val_annotations__val_images="'instances_val.json', 'val/'",
        classes="('nucleus',)",
        scale='(96, 96)',
        max_epochs='1',
    )
    found = json.loads((predictions / 'predictions.json').read_text())
    assert found
    assert {entry['category_name'] for entry in found} == {'nucleus'}
    assert len(list((predictions / 'pictures').glob('*.jpg'))) == 1


@pytest.mark.slow
def test_boxes_from_a_folder_to_pictures(checkout: Path, tmp_path: Path) -> None:
    """With a part to test on, and an annotation file as tools for boxes write it: without segmentation."""
    data = tmp_path / 'boxes'
    make_dataset(tmp_path / 'shapes', train=4, val=4, size=64)
    for name, part, images in (('train', 'train', slice(4)), ('val', 'val', slice(2)), ('test', 'val', slice(2, 4))):
        content = json.loads((tmp_path / f'shapes/annotations/instances_{part}.json').read_text())
        content['images'] = sorted(content['images'], key=lambda image: image['id'])[images]
        ids = {image['id'] for image in content['images']}
        content['annotations'] = [entry for entry in content['annotations'] if entry['image_id'] in ids]
        for entry in content['annotations']:
            del entry['segmentation']
        (data / 'annotations').mkdir(parents=True, exist_ok=True)
        (data / f'annotations/{name}.json').write_text(json.dumps(content))
        (data / name).mkdir()
        for image in content['images']:
            shutil.copy(tmp_path / f'shapes/images/{FOLDERS[part]}/{image["file_name"]}', data / name)
    predictions = walk(
        checkout,
        data,
        BOXES,
        'coco/bbox_mAP',
        'epoch_2.pth',
        'test',
        test_annotations__test_images="'annotations/test.json', 'test/'",
        classes=repr(CLASSES),
        scale='(64, 64)',
        max_epochs='2',
    )
    found = json.loads((predictions / 'predictions.json').read_text())
    assert found
    assert not any('segmentation' in entry for entry in found)
    assert len(list((predictions / 'pictures').glob('*.jpg'))) == 2


@pytest.mark.slow
def test_label_maps_from_a_folder_to_pictures(checkout: Path, data: Path) -> None:
    names = [line.split()[1] for line in (data / 'camvid/classes.txt').read_text().splitlines()]
    suffix = next((data / 'camvid/images/training').iterdir()).suffix
    image = min((data / 'camvid/images/validation').iterdir())
    predictions = walk(
        checkout,
        data / 'camvid',
        LABEL_MAPS,
        'mIoU',
        'iter_2.pth',
        f'images/validation/{image.name}',
        image_suffix__label_suffix=f"'{suffix}', '.png'",
        classes=repr(tuple(names)),
        reduce_zero_label='True',
        scale='(128, 96)',
        crop_size='(64, 64)',
        max_iters='2',
    )
    assert (predictions / f'label_maps/{image.stem}.png').is_file()
