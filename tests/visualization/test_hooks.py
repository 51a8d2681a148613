from __future__ import annotations

import atexit
import json
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from cvt_dense.visualization import hooks as watching
from cvt_dense.visualization.hooks import CurvesHook, SamplesHook

HEIGHT, WIDTH = 24, 40
CLASSES = dict(classes=('cat', 'dog'), palette=[(255, 0, 0), (0, 255, 0)])
Sampler = Callable[[Path, int], BaseDataElement]


def write_image(folder: Path, height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    path = folder / f'image_{height}.png'
    cv2.imwrite(str(path), np.full((height, width, 3), 128, np.uint8))
    return dict(img_path=str(path), ori_shape=(height, width))


def detection(folder: Path, found: int = 2) -> DetDataSample:
    """Two true instances, and as many found ones as asked for, of which the second is too uncertain to be drawn."""
    masks = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    masks[0, 2:20, 4:16], masks[1, 10:22, 20:36] = 1, 1
    boxes = torch.tensor([[4.0, 2.0, 16.0, 20.0], [20.0, 10.0, 36.0, 22.0]])
    sample = DetDataSample(metainfo=write_image(folder))
    labels = torch.tensor([1, 1])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, HEIGHT, WIDTH))
    predicted = InstanceData(
        bboxes=boxes, labels=labels, masks=torch.from_numpy(masks).bool(), scores=torch.tensor([0.9, 0.1])
    )
    sample.pred_instances = predicted[:found]
    return sample


def segmentation(folder: Path, found: int = 1) -> SegDataSample:
    truth = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.long)
    truth[:, 10:] = 255
    sample = SegDataSample(metainfo=write_image(folder))
    sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=truth), PixelData(data=torch.full_like(truth, found))
    return sample


def visualizer(kind: type[Visualizer], folder: Path) -> Visualizer:
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    made = kind(vis_backends=backends, save_dir=str(folder / 'vis_data'))
    made.dataset_meta = CLASSES
    return made


def training(work_dir: Path, done: int, by_epoch: bool = True, interval: int = 1, images: int = 10) -> SimpleNamespace:
    """A run of 12 epochs of 10 iterations, or 12 iterations, after some of them."""
    loop_type = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    loop = loop_type.__new__(loop_type)
    loop.val_interval = interval
    return SimpleNamespace(
        work_dir=str(work_dir),
        logger=logging.getLogger('test_watching'),
        train_loop=loop,
        epoch=done if by_epoch else 0,
        iter=done * 10 if by_epoch else done,
        max_iters=120 if by_epoch else 12,
        val_dataloader=SimpleNamespace(sampler=range(images)),
    )


def evaluate(hook: SamplesHook, runner: SimpleNamespace, samples: list[Any], batch_size: int = 4) -> None:
    hook.before_val_epoch(runner)
    for first in range(0, len(samples), batch_size):
        hook.after_val_iter(runner, first // batch_size, None, samples[first : first + batch_size])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places of the samples that would have been drawn."""
    places: list[int] = []
    monkeypatch.setattr(watching, '_draw_sample', lambda runner, sample: places.append(sample.place))
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
@pytest.mark.parametrize(
    ('kind', 'sampler'), [(DetLocalVisualizer, detection), (SegLocalVisualizer, segmentation)], ids=['mmdet', 'mmseg']
)
def test_prediction_and_truth_are_written_side_by_side_and_to_tensorboard(
    tmp_path: Path, by_epoch: bool, kind: type[Visualizer], sampler: Sampler
) -> None:
    runner = training(tmp_path, 3, by_epoch, images=1)
    runner.visualizer = visualizer(kind, tmp_path)
    evaluate(SamplesHook(), runner, [sampler(tmp_path, 1)])
    path = tmp_path / 'samples' / ('epoch_3' if by_epoch else 'iter_3') / f'image_{HEIGHT}.png'
    picture = cv2.imread(str(path))
    assert picture.shape == (307 + 28, 2 * 512, 3)  # 40x24 pixels enlarged, and titles
    truth, prediction = picture[28:, :512], picture[28:, 512:]
    assert (truth != prediction).any()
    assert all((half != 128).any() for half in (truth, prediction))
    assert [path.name[:6] for path in (tmp_path / 'vis_data').rglob('*') if path.is_file()] == ['events']
    assert not list(tmp_path.rglob('vis_image')), 'the local backend would write them once more'


@pytest.mark.parametrize(
    ('sampler', 'found'), [(detection, 0), (segmentation, 0)], ids=['no instance', 'background alone']
)
def test_what_finds_nothing_is_drawn_too(tmp_path: Path, sampler: Sampler, found: int) -> None:
    runner = training(tmp_path, 1, images=1)
    runner.visualizer = visualizer(DetLocalVisualizer if sampler is detection else SegLocalVisualizer, tmp_path)
    evaluate(SamplesHook(), runner, [sampler(tmp_path, found)])
    assert len(list((tmp_path / 'samples').rglob('*.png'))) == 1


@pytest.mark.parametrize(('longest', 'expected'), [(100, 512), (600, 600), (2000, 800)])
def test_pictures_are_of_a_size_that_can_be_looked_at(tmp_path: Path, longest: int, expected: int) -> None:
    runner = training(tmp_path, 1, images=1)
    runner.visualizer = visualizer(DetLocalVisualizer, tmp_path)
    sample = DetDataSample(metainfo=write_image(tmp_path, longest // 2, longest))
    evaluate(SamplesHook(), runner, [sample])
    (path,) = (tmp_path / 'samples').rglob('*.png')
    assert cv2.imread(str(path)).shape == (expected // 2 + 28, 2 * expected, 3)


def test_boxes_masks_and_label_maps_grow_with_their_image(tmp_path: Path) -> None:
    shape = (2 * HEIGHT, 2 * WIDTH)
    sample = detection(tmp_path)
    resized = watching._resized(sample, shape)
    expected = sample.pred_instances.masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(resized.pred_instances.masks, expected)
    np.testing.assert_array_equal(resized.gt_instances.masks.masks, expected)
    for name in ('gt_instances', 'pred_instances'):
        assert resized.get(name).bboxes.tolist() == [[8, 4, 32, 40], [40, 20, 72, 44]]
    assert sample.pred_instances.masks.shape == (2, HEIGHT, WIDTH), 'evaluation has still to see them'
    scene = segmentation(tmp_path)
    labels = watching._resized(scene, shape).gt_sem_seg.data
    assert torch.equal(labels, scene.gt_sem_seg.data.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_drawing_takes_nothing_from_the_random_generators_and_looks_the_same_twice(tmp_path: Path) -> None:
    def states() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    pictures = []
    for seed in (1, 2):
        runner = training(tmp_path, seed, images=1)
        runner.visualizer = visualizer(DetLocalVisualizer, tmp_path)
        np.random.seed(seed)
        before = states()
        evaluate(SamplesHook(), runner, [detection(tmp_path)])
        assert states() == before
        pictures.append((tmp_path / 'samples' / f'epoch_{seed}' / f'image_{HEIGHT}.png').read_bytes())
    assert pictures[0] == pictures[1]


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = training(tmp_path, 1, images=2)
    runner.visualizer = visualizer(DetLocalVisualizer, tmp_path)
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
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.delitem(sys.modules, 'cvt_dense.visualization.curves', raising=False)
    hook, runner = CurvesHook(), training(tmp_path, 0)
    hook.before_train(runner)
    hook.after_val_epoch(runner)
    hook.after_train(runner)
    (message,) = caplog.messages
    assert message.startswith('no curves are drawn: ')
    assert message.endswith('pip install matplotlib')
    assert at_exit == []


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
