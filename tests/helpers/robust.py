"""Runs of the tools in this process, on small data sets that the tests break."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader
from paths import ROOT
from PIL import Image

from cvt_dense.engine import launch

DETECTION, SEGMENTATION = 'configs/maskrcnn_cvttiny_fpn_shapes.py', 'configs/upernet_cvttiny_shapes.py'
SIDE = 64
CLASSES = ('ellipse', 'rectangle', 'triangle', 'star', 'ring')
_LOADERS = ('train', 'val', 'test')
QUICK = {
    f'{split}_dataloader.{key}': value
    for split in _LOADERS
    for key, value in (('num_workers', 0), ('persistent_workers', False), ('batch_size', 2))
}
QUICK |= {
    'default_hooks.samples.interval': 0,
    'default_hooks.logger.interval': 1,
    'randomness.seed': 0,
    'default_hooks.checkpoint.save_best': None,
}
QUICK_DETECTION = QUICK | {
    'val_dataloader.dataset.pipeline.1.scale': (SIDE, SIDE),
    'test_dataloader.dataset.pipeline.1.scale': (SIDE, SIDE),
    'model.backbone.init_cfg': None,
    'train_cfg.max_epochs': 1,
    'train_cfg.val_interval': 1,
}
QUICK_SEGMENTATION = QUICK | {
    'model.data_preprocessor.size': (SIDE, SIDE),
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': 9,
}
_number = itertools.count()


@dataclass(frozen=True)
class Outcome:
    """What a run of a tool came to."""

    code: int
    error: str  # its last line on stderr, where it failed
    log: str

    def assert_fails(self, *parts: str) -> None:
        """See that it stopped with one line, which has these parts, before it trained."""
        assert self.code == 2, self.log
        assert self.error.startswith('error: '), self.log
        for part in parts:
            assert part in self.error, self.error
        assert 'Traceback' not in self.log, self.log[self.log.index('Traceback') - 1500 :]

    def assert_works(self, *parts: str) -> None:
        """See that it went through, with finite losses, and that the log has these parts."""
        assert self.code == 0, self.error
        assert 'loss: ' in self.log
        assert not re.search(r'loss\w*: (nan|inf)', self.log)
        for part in parts:
            assert part in self.log, self.log


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a tool as the command line does."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('SHAPES_ROOT', str(tmp_path / 'data'))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '')
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())  # others write to what was stdout in another test

    def run_tool(tool: str, *arguments: object, work_dir: Path | None = None, **options: Any) -> Outcome:
        settings = options | {'experiment_name': f'robust_{next(_number)}'}
        pairs = [f'{key}={_written(value)}' for key, value in settings.items()]
        command = [tool, *map(str, arguments), '--work-dir', str(work_dir or tmp_path / 'run'), '--cfg-options', *pairs]
        monkeypatch.setattr(sys, 'argv', command)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            launch.run(_main_of(tool))
        out, err = capfd.readouterr()
        return Outcome(int(end.value.code), (err.strip().splitlines() or [''])[-1], out + err)

    return run_tool


def _written(value: Any) -> str:
    return f'({",".join(map(str, value))})' if isinstance(value, tuple) else str(value)


def _main_of(tool: str) -> Callable[[], None]:
    spec = importlib.util.spec_from_file_location(f'tool_{tool}', ROOT / 'tools' / f'{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


class Instances:
    """Four images for training and one for validation in COCO's format, with an ellipse's box and polygon in each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content = {split: self._split(split, count) for split, count in (('training', 4), ('validation', 1))}
        self.train = self.content['training']
        self.save()

    def _split(self, split: str, count: int) -> dict[str, list[dict[str, Any]]]:
        (self.root / 'images' / split).mkdir(parents=True)
        content: dict[str, list[dict[str, Any]]] = dict(images=[], annotations=[])
        content['categories'] = [dict(id=10 * i + 3, name=name) for i, name in enumerate(CLASSES)]  # with gaps
        for number in range(count):
            picture().save(self.root / 'images' / split / f'{number}.png')
            content['images'].append(dict(id=number, file_name=f'{number}.png', width=SIDE, height=SIDE))
            content['annotations'].append(annotation(number + 1, number))
        return content

    def save(self) -> None:
        """Write the annotation files."""
        (self.root / 'annotations').mkdir(exist_ok=True)
        for split, name in (('training', 'train'), ('validation', 'val')):
            (self.root / f'annotations/instances_{name}.json').write_text(json.dumps(self.content[split]))

    def image(self, number: int = 0, split: str = 'training') -> Path:
        """Path of an image."""
        return self.root / 'images' / split / f'{number}.png'


def annotation(identity: int, image: int, **changes: object) -> dict[str, Any]:
    """An annotation of a square in the middle of an image."""
    a, b = SIDE // 4, 3 * SIDE // 4
    polygon = [a, a, b, a, b, b, a, b]
    found = dict(id=identity, image_id=image, category_id=13, bbox=[a, a, b - a, b - a], area=(b - a) ** 2)
    return found | dict(iscrowd=0, segmentation=[polygon]) | changes


def picture(mode: str = 'RGB', size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """An image of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


class LabelMaps:
    """Four images for training and one for validation, with label maps of six classes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for split, count in (('training', 4), ('validation', 1)):
            for folder in ('images', 'annotations'):
                (root / folder / split).mkdir(parents=True)
            for number in range(count):
                picture().save(self.image(number, split))
                self.write(np.resize(np.arange(6, dtype=np.uint8), (SIDE, SIDE)), number, split)

    def image(self, number: int = 0, split: str = 'training') -> Path:
        """Path of an image."""
        return self.root / 'images' / split / f'{number}.jpg'

    def labels(self, number: int = 0, split: str = 'training') -> Path:
        """Path of a label map."""
        return self.root / 'annotations' / split / f'{number}.png'

    def write(self, values: np.ndarray, number: int = 0, split: str = 'training') -> None:
        """Write a label map."""
        Image.fromarray(values).save(self.labels(number, split))
