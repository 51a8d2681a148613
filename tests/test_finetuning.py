"""The page on fine-tuning, followed to the letter: with data that are no example of the project's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import documents
import pytest
from paths import ROOT
from tool_processes import run_tool

DETECTION, SEGMENTATION = 'configs/maskrcnn_cvt13_fpn_custom.py', 'configs/upernet_cvt13_custom.py'
#: A model and a schedule that a CPU gets through in seconds; nothing that the page speaks of.
SMALL = """
default_hooks = dict(logger=dict(interval=1))
model['backbone'] = dict(
    arch=dict(_delete_=True, embed_dims=[16, 32, 48], num_heads=[1, 2, 3], depths=[1, 1, 1]), init_cfg=None
)
randomness = dict(seed=0)
for loader in (train_dataloader, val_dataloader):
    loader.update(num_workers=0, persistent_workers=False)
    loader['dataset']['indices'] = 2
"""
SMALL_DETECTION = """
model['neck'] = dict(in_channels=[16, 32, 48])
model['roi_head']['bbox_head']['fc_out_channels'] = 16
model.update(
    train_cfg=dict(rpn_proposal=dict(max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=5)),
)
train_cfg = dict(max_epochs=1)
"""
SMALL_SEGMENTATION = """
model['decode_head'].update(in_channels=[16, 32, 48], channels=16)
model['auxiliary_head'].update(in_channels=48, channels=16)
train_dataloader['batch_size'] = 2
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks['checkpoint'] = dict(interval=2)
"""


def documented_commands() -> list[str]:
    """The commands of the page that stand one a line."""
    lines = ''.join(documents.blocks(ROOT / 'docs/finetuning.md', 'bash')).splitlines()
    return [line for line in lines if 'configs/mine.py' in line]


def follow(checkout: Path, line: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the page in a checkout."""
    words = shlex.split(line)
    while '=' in words[0]:
        words.pop(0)
    if words[0] == 'python' and 'HF_HUB_OFFLINE' not in settings:  # which counts during the imports
        return run_tool(words[1:], cwd=checkout, env=os.environ | settings)
    words = [sys.executable if word == 'python' else word for word in words]
    env = os.environ | settings | {'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    return subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True, timeout=600, check=False)


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


@pytest.mark.slow
def test_nuclei_from_a_folder_to_pictures(checkout: Path, data: Path) -> None:
    copy, doctor, train, test, predict = documented_commands()
    assert follow(checkout, copy).returncode == 0
    config = checkout / 'configs/mine.py'
    edit(
        config,
        train_annotations__train_images="'instances_train.json', 'train/'",
        val_annotations__val_images="'instances_val.json', 'val/'",
        classes="('nucleus',)",
    )
    root = str(data / 'nuclei')
    looked = follow(checkout, doctor, CUSTOM_ROOT=root, HF_HUB_OFFLINE='1')
    failures = [line for line in looked.stdout.splitlines() if line.startswith('FAIL')]
    assert all(line.split()[1] == 'checkpoint' for line in failures), looked.stdout  # there is no network
    assert re.search(r'ok +classes +1 in the data', looked.stdout)

    config.write_text(config.read_text() + SMALL + SMALL_DETECTION)
    trained = follow(checkout, train, CUSTOM_ROOT=root)
    assert trained.returncode == 0, trained.stderr[-3000:]
    work_dir = checkout / 'work_dirs/mine'
    (work_dir / 'epoch_1.pth').rename(work_dir / 'epoch_12.pth')  # so many the page trains for
    assert (work_dir / 'curves.png').is_file()
    tested = follow(checkout, test, CUSTOM_ROOT=root)
    assert tested.returncode == 0, tested.stderr[-3000:]
    assert 'coco/segm_mAP' in tested.stdout + tested.stderr

    (checkout / 'data/custom/val').mkdir(parents=True)
    image = min((data / 'nuclei/val').iterdir())
    shutil.copy(image, checkout / 'data/custom/val')
    predicted = follow(checkout, f'{predict} --score-thr 0')
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    found = json.loads((checkout / 'predictions/predictions.json').read_text())
    assert found
    assert {entry['category_name'] for entry in found} == {'nucleus'}
    assert (checkout / f'predictions/pictures/{image.stem}.jpg').is_file()


@pytest.mark.slow
def test_street_scenes_from_a_folder_to_pictures(checkout: Path, data: Path) -> None:
    copy, doctor, train, test, predict = documented_commands()
    assert follow(checkout, copy.replace(DETECTION, SEGMENTATION)).returncode == 0
    config = checkout / 'configs/mine.py'
    names = [line.split()[1] for line in (data / 'camvid/classes.txt').read_text().splitlines()]
    suffix = next((data / 'camvid/images/training').iterdir()).suffix
    edit(config, image_suffix__label_suffix=f"'{suffix}', '.png'", classes=repr(tuple(names)), reduce_zero_label='True')
    root = str(data / 'camvid')
    looked = follow(checkout, doctor, CUSTOM_ROOT=root, HF_HUB_OFFLINE='1')
    failures = [line for line in looked.stdout.splitlines() if line.startswith('FAIL')]
    assert all(line.split()[1] == 'checkpoint' for line in failures), looked.stdout

    config.write_text(config.read_text() + SMALL + SMALL_SEGMENTATION)
    trained = follow(checkout, train, CUSTOM_ROOT=root)
    assert trained.returncode == 0, trained.stderr[-3000:]
    checkpoint = 'work_dirs/mine/iter_2.pth'
    tested = follow(checkout, test.replace('work_dirs/mine/epoch_12.pth', checkpoint), CUSTOM_ROOT=root)
    assert tested.returncode == 0, tested.stderr[-3000:]
    assert 'mIoU' in tested.stdout + tested.stderr
    (checkout / 'data/custom/val').mkdir(parents=True)
    image = min((data / 'camvid/images/validation').iterdir())
    shutil.copy(image, checkout / 'data/custom/val')
    predicted = follow(checkout, predict.replace('work_dirs/mine/epoch_12.pth', checkpoint))
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    assert (checkout / f'predictions/label_maps/{image.stem}.png').is_file()
