"""What shows how a training run is doing, written while it goes on: curves, and predictions on the same few images.

A picture that cannot be drawn is a warning, never the end of a run.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import Logger
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import LocalVisBackend

_SIDES = 512, 800  # pixels: smaller images are enlarged so that labels can be read, larger ones shrunk


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws losses, learning rate and metrics into ``curves.png`` in the work directory.

    After each evaluation, at the end, and when an error or Ctrl-C ends the run before; over all runs that were resumed
    one from another. Needs the scalars of mmengine's ``LocalVisBackend``.
    """

    priority = 'VERY_LOW'  # an evaluation is logged before

    def __init__(self) -> None:
        self._draw: Callable[[], None] | None = None

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Let the curves be drawn however the process ends, short of a kill."""
        try:
            from .curves import plot_curves, read_history
        except ImportError as error:  # matplotlib, which not every environment has
            runner.logger.warning(f'no curves are drawn: {error}; pip install matplotlib')
            return
        work_dir, logger = runner.work_dir, runner.logger  # and not the runner, which would be kept to the very end

        def draw() -> None:
            with _warning_of_failure('curves', logger):
                plot_curves(read_history(work_dir), Path(work_dir) / 'curves.png')

        self._draw = atexit.register(draw)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw what there is so far."""
        if self._draw:
            self._draw()

    def after_train(self, runner: Runner) -> None:
        """Draw the whole run."""
        if self._draw:
            atexit.unregister(self._draw)
            self._draw()


@HOOKS.register_module()
class SamplesHook(Hook):
    """Draws predictions beside the ground truth on a few validation images, the same ones each time.

    The pictures go to ``samples/epoch_N`` or ``samples/iter_N`` in the work directory and to the visualizer's backends
    other than the local one, such as TensorBoard. They are drawn by the visualizer of the toolkit, in which the left
    half is the ground truth, from what evaluation predicts anyway.

    Args:
        interval: Evaluations from one set of pictures to the next; the last one of a run has a set too. 0: no pictures.
        count: Images, spread evenly over those that the first process evaluates.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 1, count: int = 4) -> None:
        self.interval = interval
        self.count = count
        self._wanted: set[int] = set()
        self._seen = 0

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose the images: by their place in the order of evaluation."""
        self._wanted, self._seen = set(), 0
        with _warning_of_failure('samples', runner.logger):
            if is_main_process() and self._is_due(runner):
                total = len(runner.val_dataloader.sampler)
                self._wanted = {i * total // self.count for i in range(self.count)}

    def _is_due(self, runner: Runner) -> bool:
        if not self.interval or not runner.iter:
            return False
        evaluation = _progress(runner)[1] // runner.train_loop.val_interval
        return evaluation % self.interval == 0 or runner.iter == runner.max_iters

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[BaseDataElement] | None = None
    ) -> None:
        """Draw those of a batch's images that are wanted."""
        for place, sample in enumerate(outputs, start=self._seen):
            if place in self._wanted:
                with _warning_of_failure('a sample', runner.logger):
                    _draw_sample(runner, sample)
        self._seen += len(outputs)


def _draw_sample(runner: Runner, sample: BaseDataElement) -> None:
    unit, step = _progress(runner)
    name = Path(sample.img_path).stem
    path = Path(runner.work_dir) / 'samples' / f'{unit}_{step}' / f'{name}.png'
    image = cv2.imdecode(np.frombuffer(get(sample.img_path), np.uint8), cv2.IMREAD_COLOR_RGB)
    scale = np.clip(max(image.shape), *_SIDES) / max(image.shape)
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    with _fixed_numpy_seed():
        runner.visualizer.add_datasample(name, image, _resized(sample, image.shape[:2]), out_file=str(path))
    picture = _with_titles(cv2.imread(str(path)))
    cv2.imwrite(str(path), picture)
    for backend in runner.visualizer._vis_backends.values():
        if not isinstance(backend, LocalVisBackend):  # which would write it a second time
            backend.add_image(f'samples/{name}', picture[..., ::-1], step)


def _resized(sample: BaseDataElement, shape: tuple[int, int]) -> BaseDataElement:
    """What is drawn of a sample of mmdet or mmseg, for its image at another size."""
    resized = sample.new()
    for name in ('gt_instances', 'pred_instances'):
        if name in sample:
            instances = sample.get(name).new()
            instances.bboxes = instances.bboxes * (shape[0] / sample.ori_shape[0])
            if 'masks' in instances:
                instances.masks = _resized_masks(instances.masks, shape)
            setattr(resized, name, instances)
    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            setattr(resized, name, PixelData(data=_resized_masks(sample.get(name).data, shape)))
    return resized


def _resized_masks(masks: Any, shape: tuple[int, int]) -> Any:
    """Masks or label maps, ``(N, H, W)`` tensors or mmdet's structures, at another height and width."""
    if not isinstance(masks, torch.Tensor):
        return masks.resize(shape)
    rows, columns = (torch.arange(new) * old // new for old, new in zip(masks.shape[1:], shape))
    return masks[:, rows[:, None], columns]


def _with_titles(picture: np.ndarray) -> np.ndarray:
    titled = cv2.copyMakeBorder(picture, 28, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255,) * 3)
    for title, left in (('ground truth', 0), ('prediction', picture.shape[1] // 2)):
        cv2.putText(titled, title, (left + 6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return titled


def _progress(runner: Runner) -> tuple[str, int]:
    """How far a run is, in the unit that it counts in and names its checkpoints by."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return 'epoch', runner.epoch
    return 'iter', runner.iter


@contextmanager
def _fixed_numpy_seed() -> Iterator[None]:
    """Let mmdet, which jitters colours at random, draw the same ones every time and leave the run's generator alone."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


@contextmanager
def _warning_of_failure(what: str, logger: Logger) -> Iterator[None]:
    """Let training go on without a picture that cannot be drawn."""
    try:
        yield
    except Exception as error:  # whatever it is, the run is worth more
        logger.warning(f'{what} not drawn: {type(error).__name__}: {error}')
