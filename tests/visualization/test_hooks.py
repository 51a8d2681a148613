from __future__ import annotations

import atexit
import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer
from mmseg.structures import SegDataSample
from paths import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cvt_dense.visualization import hooks
from cvt_dense.visualization.hooks import CurvesHook, SamplesHook
from cvt_dense.visualization.painter import TITLE_HEIGHT

HEIGHT, WIDTH = 24, 40
CLASSES = dict(classes=('cat', 'dog'), palette=[(255, 0, 0), (0, 255, 0)])
Sampler = Callable[[Path], BaseDataElement]


def write_image(folder: Path) -> dict[str, Any]:
    cv2.imwrite(str(folder / 'image.png'), np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    return dict(img_path=str(folder / 'image.png'), ori_shape=(HEIGHT, WIDTH))


def detection(folder: Path) -> DetDataSample:
    """Two dogs, of which one is found."""
    masks = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    masks[0, 2:20, 4:16], masks[1, 10:22, 20:36] = 1, 1
    boxes, labels = torch.tensor([[4.0, 2.0, 16.0, 20.0], [20.0, 10.0, 36.0, 22.0]]), torch.tensor([1, 1])
    sample = DetDataSample(metainfo=write_image(folder))
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, HEIGHT, WIDTH))
    sample.pred_instances = InstanceData(bboxes=boxes[:1], labels=labels[:1], scores=torch.tensor([0.9]))
    return sample


def segmentation(folder: Path) -> SegDataSample:
    """A cat that is found as a dog."""
    truth = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.long)
    sample = SegDataSample(metainfo=write_image(folder))
    sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=truth), PixelData(data=truth + 1)
    return sample


def visualizer(folder: Path) -> Visualizer:
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    made = Visualizer(vis_backends=backends, save_dir=str(folder / 'vis_data'))
    made.dataset_meta = CLASSES
    return made


def training(work_dir: Path, done: int, by_epoch: bool = True, interval: int = 1, images: int = 10) -> SimpleNamespace:
    """A run of 12 epochs of 10 iterations, or 12 iterations, after some of them."""
    loop_type = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    loop = loop_type.__new__(loop_type)
    loop.val_interval = interval
    return SimpleNamespace(
        work_dir=str(work_dir),
        logger=logging.getLogger('test_hooks'),
        train_loop=loop,
        epoch=done if by_epoch else 0,
        iter=done * 10 if by_epoch else done,
        max_iters=120 if by_epoch else 12,
        val_dataloader=SimpleNamespace(sampler=range(images)),
        visualizer=visualizer(work_dir),
    )


def evaluate(hook: SamplesHook, runner: SimpleNamespace, samples: list[Any], batch_size: int = 4) -> None:
    hook.before_val_epoch(runner)
    for first in range(0, len(samples), batch_size):
        hook.after_val_iter(runner, first // batch_size, None, samples[first : first + batch_size])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places of the samples that would have been drawn."""
    places: list[int] = []
    monkeypatch.setattr(hooks, '_draw_sample', lambda runner, sample, painter: places.append(sample.place))
    return places


def numbered(count: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(place=place, img_path='') for place in range(count)]


@pytest.mark.parametrize(('images', 'count', 'expected'), [(12, 3, [0, 4, 8]), (3, 6, [0, 1, 2]), (10, 1, [0])])
def test_the_same_images_from_all_over_are_drawn_each_time(
    tmp_path: Path, drawn: list[int], images: int, count: int, expected: list[int]
) -> None:
    hook = SamplesHook(count=count)
    for epoch in (1, 2):
        evaluate(hook, training(tmp_path, epoch, images=images), numbered(images))
    assert drawn == expected * 2


@pytest.mark.parametrize(
    ('by_epoch', 'interval', 'val_interval', 'expected'),
    [
        (True, 1, 1, list(range(1, 13))),
        (True, 5, 1, [5, 10, 12]),
        (True, 2, 3, [6, 12]),
        (False, 2, 3, [6, 12]),
        (False, 0, 1, []),
    ],
)
def test_there_are_pictures_of_every_nth_evaluation_and_the_last_one(
    tmp_path: Path, drawn: list[int], by_epoch: bool, interval: int, val_interval: int, expected: list[int]
) -> None:
    with_pictures = []
    for done in range(val_interval, 13, val_interval):
        drawn.clear()
        runner = training(tmp_path, done, by_epoch, val_interval)
        evaluate(SamplesHook(interval), runner, numbered(10))  # a new one each time, as after a resume
        with_pictures += [done] if drawn else []
    assert with_pictures == expected


def test_an_evaluation_without_training_has_no_pictures(tmp_path: Path, drawn: list[int]) -> None:
    evaluate(SamplesHook(), training(tmp_path, 0), numbered(10))
    assert drawn == []


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('sampler', [detection, segmentation], ids=['mmdet', 'mmseg'])
def test_prediction_and_truth_are_written_side_by_side_and_to_tensorboard(
    tmp_path: Path, by_epoch: bool, sampler: Sampler
) -> None:
    runner = training(tmp_path, 3, by_epoch, images=1)
    evaluate(SamplesHook(), runner, [sampler(tmp_path)])
    runner.visualizer.close()  # writes the last events
    (path,) = (tmp_path / 'samples').rglob('*.png')
    assert path == tmp_path / 'samples' / ('epoch_3' if by_epoch else 'iter_3') / 'image.png'
    picture = cv2.imread(str(path))
    truth, prediction = np.hsplit(picture, 2)
    assert (truth[TITLE_HEIGHT:] != prediction[TITLE_HEIGHT:]).any()
    assert (prediction == CLASSES['palette'][1]).all(2).any(), 'the colour of dogs'
    (events,) = (path for path in (tmp_path / 'vis_data').rglob('*') if path.is_file())
    (shown,) = pictures_in(events, 'samples/image')
    assert shown.step == runner.iter == (30 if by_epoch else 3), 'as losses are'
    sent = cv2.imdecode(np.frombuffer(shown.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(sent, picture)
    assert not list(tmp_path.rglob('vis_image')), 'the local backend would write them once more'


def test_mlflow_which_has_files_and_no_steps_gets_a_file_for_each_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, np.ndarray] = {}
    mlflow = MagicMock(MlflowException=ValueError, log_image=lambda image, name: sent.update({name: image}))
    monkeypatch.setitem(sys.modules, 'mlflow', mlflow)
    MMLogger.get_instance('test_hooks')
    for done in (1, 2):
        runner = training(tmp_path, done, images=1)
        runner.visualizer = Visualizer(vis_backends=[dict(type='MLflowVisBackend')], save_dir=str(tmp_path))
        runner.visualizer.dataset_meta = CLASSES
        evaluate(SamplesHook(), runner, [detection(tmp_path)])
    assert list(sent) == ['samples/epoch_1/image.png', 'samples/epoch_2/image.png']
    for name, image in sent.items():
        np.testing.assert_array_equal(image[..., ::-1], cv2.imread(str(tmp_path / name)))


def pictures_in(events: Path, name: str) -> list[Any]:
    """The pictures that TensorBoard has of a name."""
    accumulator = EventAccumulator(str(events)).Reload()
    assert accumulator.Tags()['images'] == [name]
    return accumulator.Images(name)


def test_drawing_takes_nothing_from_the_random_generators_and_looks_the_same_twice(tmp_path: Path) -> None:
    def states() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    pictures = []
    for seed in (1, 2):
        runner = training(tmp_path, seed, images=1)
        np.random.seed(seed)
        before = states()
        evaluate(SamplesHook(), runner, [detection(tmp_path)])
        assert states() == before
        pictures.append((tmp_path / 'samples' / f'epoch_{seed}' / 'image.png').read_bytes())
    assert pictures[0] == pictures[1]


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = training(tmp_path, 1, images=2)
    lost = detection(tmp_path)
    lost.set_metainfo(dict(img_path=str(tmp_path / 'gone.png')))
    evaluate(SamplesHook(), runner, [lost, detection(tmp_path)])
    (message,) = caplog.messages
    assert message.startswith('a sample not drawn: FileNotFoundError')
    assert str(tmp_path / 'gone.png') in message
    assert len(list((tmp_path / 'samples').rglob('*.png'))) == 1


def test_a_loader_that_has_no_length_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = training(tmp_path, 1)
    runner.val_dataloader = SimpleNamespace(sampler=iter(()))
    SamplesHook().before_val_epoch(runner)
    (message,) = caplog.messages
    assert message.startswith('samples not drawn: TypeError')


def log(work_dir: Path) -> None:
    folder = work_dir / '20250101_000000' / 'vis_data'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'scalars.json').write_text(json.dumps({'loss': 1.0, 'lr': 0.1, 'iter': 1, 'step': 1}) + '\n')


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What would be called at the end of the process."""
    calls: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, 'register', lambda call: calls.append(call) or call)
    monkeypatch.setattr(atexit, 'unregister', calls.remove)
    return calls


def test_curves_are_drawn_after_each_evaluation_and_at_the_end(
    tmp_path: Path, at_exit: list[Callable[[], None]]
) -> None:
    hook, runner, curves = CurvesHook(), training(tmp_path, 0), tmp_path / 'curves.png'
    log(tmp_path)
    hook.before_train(runner)
    assert not curves.exists()
    for event in (hook.after_val_epoch, hook.after_train):
        event(runner)
        curves.unlink()  # which fails if there is none
    assert at_exit == []


def test_curves_of_a_run_that_stops_early_are_drawn_as_the_process_ends(
    tmp_path: Path, at_exit: list[Callable[[], None]]
) -> None:
    CurvesHook().before_train(training(tmp_path, 0))
    log(tmp_path)
    (call,) = at_exit
    call()
    assert (tmp_path / 'curves.png').exists()


def test_without_matplotlib_that_is_said_once_and_the_run_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_exit: list[Callable[[], None]],
) -> None:
    hook, runner = CurvesHook(), training(tmp_path, 0)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.delitem(sys.modules, 'cvt_dense.visualization.curves', raising=False)
    hook.before_train(runner)
    hook.after_val_epoch(runner)
    hook.after_train(runner)
    (message,) = caplog.messages
    assert message.startswith('no curves are drawn: ')
    assert message.endswith('pip install matplotlib')
    assert at_exit == []


def test_without_matplotlib_samples_are_one_warning_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook, runner = SamplesHook(), training(tmp_path, 1, images=2)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.delitem(sys.modules, 'cvt_dense.visualization.painter', raising=False)
    evaluate(hook, runner, [detection(tmp_path)] * 2)
    (message,) = caplog.messages
    assert message.startswith('samples not drawn: ModuleNotFoundError')


def test_registering_the_hooks_imports_nothing_that_draws() -> None:
    code = """
import sys, cvt_dense
from mmengine.registry import HOOKS
assert 'SamplesHook' in HOOKS and 'CurvesHook' in HOOKS
print(sorted(name for name in sys.modules if name.startswith(('cvt_dense.visualization', 'matplotlib'))))
"""
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = ['cvt_dense.visualization', 'cvt_dense.visualization.backends', 'cvt_dense.visualization.hooks']
    assert result.stdout == f'{ours}\n'


def test_curves_that_cannot_be_written_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, at_exit: list[Callable[[], None]]
) -> None:
    hook, runner = CurvesHook(), training(tmp_path / 'missing', 0)
    hook.before_train(runner)
    hook.after_val_epoch(runner)
    (message,) = caplog.messages
    assert message.startswith('curves not drawn: FileNotFoundError')


def test_of_several_processes_the_first_one_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[int], at_exit: list[Callable[[], None]]
) -> None:
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None: 1)
    runner = training(tmp_path, 1)
    evaluate(SamplesHook(), runner, numbered(10))
    CurvesHook().before_train(runner)
    assert drawn == at_exit == []
