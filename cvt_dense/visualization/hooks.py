"""Hooks that draw how a training run is going: curves, and predictions on the same few images.

A picture that cannot be drawn is a warning, never the end of a run. What draws is imported with the first picture:
registering the hooks needs mmengine only.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import LocalVisBackend, MLflowVisBackend

if TYPE_CHECKING:
    from .painter import Painter


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws losses, learning rate and metrics into ``curves.png`` in the work directory.

    It does so after each evaluation, at the end, and when an error or Ctrl-C ends the run earlier, over all runs that
    were resumed one from another. Needs the scalars of mmengine's ``LocalVisBackend``.
    """

    priority = 'VERY_LOW'  # an evaluation is logged before

    def __init__(self) -> None:
        self._draw: Callable[[], None] | None = None

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Have the curves drawn however the process ends, unless it is killed."""
        try:
            from .curves import plot_curves, read_history
        except ImportError as error:  # matplotlib may not be installed
            runner.logger.warning(f'no curves are drawn: {error}; pip install matplotlib')
            return
        work_dir, logger = runner.work_dir, runner.logger  # not the runner: the callback would keep it until the exit

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
    other than the local one, such as TensorBoard, there by the iteration, as losses do. The left half is the ground
    truth, the right half the prediction that evaluation makes anyway.

    Args:
        interval: Evaluations from one set of pictures to the next; the last one of a run always has a set. 0: none.
        count: Images, spread evenly over those that the first process evaluates.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 1, count: int = 4) -> None:
        self.interval = interval
        self.count = count
        self._painter: Painter | None = None
        self._wanted: set[int] = set()
        self._seen = 0

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose the images by their place in the order of evaluation."""
        self._wanted, self._seen = set(), 0
        with _warning_of_failure('samples', runner.logger):
            if is_main_process() and self._is_due(runner):
                from .painter import Painter

                self._painter = Painter.of(runner.visualizer.dataset_meta or {})
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
                    _draw_sample(runner, sample, self._painter)
        self._seen += len(outputs)


@HOOKS.register_module()
class PicturesHook(Hook):
    """Writes a picture of the ground truth and the prediction of each image that is tested, in every process.

    The toolkits' own hooks write those of the first process alone.

    Args:
        folder: For a PNG file of each image, named as that is below the data set's folder of images.
    """

    priority = 'LOW'

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._painter: Painter | None = None
        self._images = Path()

    def before_test_epoch(self, runner: Runner) -> None:
        """Learn the classes' names and colours, and where the images are."""
        from .painter import Painter

        dataset = runner.test_dataloader.dataset
        prefix = getattr(dataset, 'data_prefix', {})
        self._images = Path(prefix.get('img') or prefix.get('img_path') or '')
        self._painter = Painter.of(dataset.metainfo)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[BaseDataElement] | None = None
    ) -> None:
        """Draw a batch."""
        from .painter import write_image
        from .samples import draw_sample

        for sample in outputs:
            path = Path(sample.img_path)
            is_below = self._images.name and path.is_relative_to(self._images)
            name = path.relative_to(self._images) if is_below else Path(path.name)
            with _warning_of_failure(f'a picture of {path}', runner.logger):
                write_image(self.folder / name.with_suffix('.png'), draw_sample(sample, self._painter))


def _draw_sample(runner: Runner, sample: BaseDataElement, painter: Painter) -> None:
    from .painter import write_image
    from .samples import draw_sample

    picture = draw_sample(sample, painter)
    unit, done = _progress(runner)
    name = Path(sample.img_path).stem
    path = f'samples/{unit}_{done}/{name}.png'
    write_image(Path(runner.work_dir) / path, picture)
    for backend in runner.visualizer._vis_backends.values():
        if isinstance(backend, LocalVisBackend):  # which would write it a second time
            continue
        # MLflow has files in the place of steps.
        shown_as = path if isinstance(backend, MLflowVisBackend) else f'samples/{name}'
        with _warning_of_failure(f'a sample for {type(backend).__name__}', runner.logger):  # the others get theirs
            backend.add_image(shown_as, picture[..., ::-1], runner.iter)


def _progress(runner: Runner) -> tuple[str, int]:
    """How far a run is, in the unit that it counts in and names its checkpoints by."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return 'epoch', runner.epoch
    return 'iter', runner.iter


@contextmanager
def _warning_of_failure(what: str, logger: Logger) -> Iterator[None]:
    """Let training go on, with a warning, if a picture cannot be drawn."""
    try:
        yield
    except Exception as error:  # no error in a picture is worth losing the run
        logger.warning(f'{what} not drawn: {type(error).__name__}: {error}')
