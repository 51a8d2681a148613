from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmengine.runner import Runner
from small_regression import config

from cvt_dense.engine import make_resumable
from cvt_dense.visualization.curves import last_metric, plot_curves, read_history

SCALARS = [
    {'lr': 0.1, 'loss': 3.0, 'loss_cls': 2.0, 'epoch': 1, 'iter': 10, 'step': 10},
    {'coco/bbox_mAP': 0.1, 'coco/segm_mAP': 0.2, 'step': 1},
    {'lr': 0.2, 'loss': 2.0, 'loss_cls': 1.0, 'loss_mask': 1.0, 'epoch': 2, 'iter': 20, 'step': 20},
    {'coco/bbox_mAP': 0.3, 'coco/segm_mAP': 0.4, 'step': 2},
]


def write(work_dir: Path, run: str, scalars: list[dict[str, Any]], end: str = '') -> None:
    folder = work_dir / run / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(entry) + '\n' for entry in scalars) + end)


def test_scalars_are_read_in_the_order_of_writing_and_evaluations_belong_to_the_step_before(tmp_path: Path) -> None:
    write(tmp_path, '20250101_000000', SCALARS)
    for work_dir in (tmp_path, str(tmp_path)):
        history = read_history(work_dir)
        assert [entry['iter'] for entry in history] == [10, 10, 20, 20]
        assert [entry['step'] for entry in history] == [10, 1, 20, 2]


def test_a_folder_without_runs_has_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []


def test_a_line_that_was_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, '20250101_000000', SCALARS, end='{"loss": 1.')
    assert len(read_history(tmp_path)) == 4


def test_a_resumed_run_takes_the_place_of_what_was_lost(tmp_path: Path) -> None:
    """Interrupted after step 40, resumed from a checkpoint of step 20, interrupted before it logged, resumed again."""
    first = (
        [{'loss': 1.0, 'iter': i} for i in (10, 20)] + [{'mIoU': 5.0}] + [{'loss': 1.0, 'iter': i} for i in (30, 40)]
    )
    write(tmp_path, '20250101_000000', [*first, {'mIoU': 6.0}])
    write(tmp_path, '20250101_000001', [])
    write(tmp_path, '20250101_000002', [{'mIoU': 7.0}, {'loss': 2.0, 'iter': 25}, {'loss': 2.0, 'iter': 35}])
    history = read_history(tmp_path)
    assert [(entry['iter'], entry['loss']) for entry in history if 'loss' in entry] == [
        (10, 1.0),
        (20, 1.0),
        (25, 2.0),
        (35, 2.0),
    ]
    assert [(entry['iter'], entry['mIoU']) for entry in history if 'mIoU' in entry] == [(20, 5.0), (20, 7.0)]


def test_a_fresh_run_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, '20250101_000000', SCALARS)
    write(tmp_path, '20250101_000001', SCALARS[:2])
    assert len(read_history(tmp_path)) == 2


class Evaluations(Hook):
    """The iterations at which a run was evaluated; stops it after some of them, as a kill would."""

    priority = 'LOWEST'

    def __init__(self, until: int = 10**9) -> None:
        self.iterations: list[int] = []
        self.until = until

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.iterations.append(runner.iter)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.until:
            raise KeyboardInterrupt


@METRICS.register_module(name='CountOfBatches')
class Score(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1.0)

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return dict(score=len(results))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that do not look for compilers first."""
    monkeypatch.setattr(Runner, '_log_env', lambda runner, settings: None)


def train(
    work_dir: Path, by_epoch: bool, logger: dict[str, Any], resume: bool = False, until: int = 10**9
) -> list[int]:
    """Train for three epochs of six iterations, or 15 iterations, and return where it was evaluated."""
    cfg = config(work_dir, by_epoch, workers=0, sampler='DefaultSampler' if by_epoch else 'InfiniteSampler')
    dataset = dict(type='Numbers', pipeline=[dict(type='AddNoise')])
    cfg.val_dataloader = dict(batch_size=9, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
    cfg.val_cfg, cfg.val_evaluator = dict(), dict(type='CountOfBatches')
    cfg.train_cfg.val_interval = 1 if by_epoch else 7
    cfg.default_hooks.logger = dict(type='LoggerHook') | logger
    cfg.log_processor = dict(by_epoch=by_epoch)
    cfg.resume = resume
    evaluations = Evaluations(until)
    cfg.custom_hooks = []
    make_resumable(cfg)
    runner = Runner.from_cfg(cfg)
    runner.model.val_step = lambda data: list(data['inputs'])
    runner.register_hook(evaluations)
    with suppress(KeyboardInterrupt):
        runner.train()
    return evaluations.iterations


def evaluated(work_dir: Path) -> list[int]:
    return [entry['iter'] for entry in read_history(work_dir) if 'score' in entry]


LOGGERS = [
    dict(interval=4, log_metric_by_epoch=False),
    dict(interval=4),
    dict(interval=4, ignore_last=False),
    dict(interval=50),
]


@pytest.mark.parametrize('logger', LOGGERS, ids=str)
def test_evaluations_are_at_the_iterations_at_which_a_run_made_them(tmp_path: Path, logger: dict[str, Any]) -> None:
    assert train(tmp_path, True, logger) == evaluated(tmp_path) == [6, 12, 18]


def test_in_runs_by_iteration_too(tmp_path: Path) -> None:
    assert train(tmp_path / 'a', False, LOGGERS[0]) == evaluated(tmp_path / 'a') == [7, 14, 15]
    # By the epoch, of which there is one alone, they are at the steps that were logged before.
    assert train(tmp_path / 'b', False, LOGGERS[1]) == [7, 14, 15]
    assert evaluated(tmp_path / 'b') == [4, 12, 12]


@pytest.mark.parametrize('logger', LOGGERS[:2], ids=str)
@pytest.mark.parametrize('until', [8, 17])
def test_in_runs_that_are_killed_and_resumed_too(tmp_path: Path, logger: dict[str, Any], until: int) -> None:
    """Checkpoints are written at each iteration; folders are named after the second."""
    train(tmp_path, True, logger, until=until)
    (first,) = (folder for folder in tmp_path.iterdir() if folder.is_dir())
    first.rename(tmp_path / '20250101_000000')
    train(tmp_path, True, logger, resume=True)
    assert evaluated(tmp_path) == [6, 12, 18]


def test_what_is_evaluated_again_after_a_resume_is_drawn_once(tmp_path: Path) -> None:
    """Resumed at 206, shortly before an evaluation; so short before that nothing was logged in between."""
    steps = [{'loss': 1.0, 'iter': i, 'epoch': 1 + (i - 1) // 104} for i in (50, 100, 154, 204, 258)]
    evaluations = [{'mIoU': 1.0, 'step': 104}, {'mIoU': 2.0, 'step': 208}]
    write(tmp_path, '20250101_000000', [*steps[:2], evaluations[0], *steps[2:4], evaluations[1], steps[4]])
    for rest in ([], [{'loss': 3.0, 'iter': 258, 'epoch': 3}]):
        write(tmp_path, f'20250101_00000{1 + len(rest)}', [{'mIoU': 3.0, 'step': 208}, *rest])
        history = read_history(tmp_path)
        assert [(entry['iter'], entry['mIoU']) for entry in history if 'mIoU' in entry] == [(104, 1.0), (208, 3.0)]
        assert [entry['iter'] for entry in history if 'loss' in entry] == [50, 100, 154, 204, *[258] * len(rest)]


def test_an_evaluation_that_a_kill_cut_off_comes_before_the_first_step_of_the_next_run(tmp_path: Path) -> None:
    """Also in epochs so short that the number of an iteration could be that of an epoch."""
    for length in (2, 5, 104):
        for by_epoch in (False, True):
            steps = [{'loss': 1.0, 'iter': i, 'epoch': 1 + (i - 1) // length} for i in range(1, 2 * length + 1)]
            ends = [{'mIoU': 1.0, 'step': i if by_epoch else length * i} for i in (1, 2)]
            work_dir = tmp_path / f'{length} {by_epoch}'
            write(work_dir, '20250101_000000', steps[:length])
            write(work_dir, '20250101_000001', [ends[0], *steps[length:], ends[1]])
            assert [entry['iter'] for entry in read_history(work_dir) if 'mIoU' in entry] == [length, 2 * length]


def test_an_evaluation_before_training_is_at_its_start(tmp_path: Path) -> None:
    for by_epoch in (False, True):
        steps = [{'loss': 1.0, 'iter': i, 'epoch': 1 + (i - 1) // 104} for i in (50, 100, 154, 204)]
        ends = [{'mIoU': 1.0, 'step': i if by_epoch else 104 * i} for i in range(3)]
        work_dir = tmp_path / str(by_epoch)
        write(work_dir, '20250101_000000', [ends[0], *steps[:2], ends[1], *steps[2:], ends[2]])
        assert [entry['iter'] for entry in read_history(work_dir) if 'mIoU' in entry] == [0, 104, 208]


def test_where_the_length_of_an_epoch_does_not_show_an_evaluation_is_at_the_last_step(tmp_path: Path) -> None:
    write(
        tmp_path, '20250101_000000', [{'loss': 1.0, 'iter': i, 'epoch': 1} for i in (50, 92)] + [{'AP': 1, 'step': 1}]
    )
    assert [entry['iter'] for entry in read_history(tmp_path)] == [50, 92, 92]


def test_an_estimate_stays_between_the_steps_around_it(tmp_path: Path) -> None:
    """A run by the epoch that was resumed with batches of half the size: its epochs are twice as long."""
    first = [{'loss': 1.0, 'iter': i, 'epoch': 1 + (i - 1) // 100} for i in (50, 100, 150, 200)]
    write(tmp_path, '20250101_000000', [*first[:2], {'AP': 1, 'step': 1}, *first[2:], {'AP': 1, 'step': 2}])
    second = [{'loss': 1.0, 'iter': i, 'epoch': 3 + (i - 201) // 200} for i in (250, 300, 350, 400, 450)]
    write(tmp_path, '20250101_000001', [*second[:4], {'AP': 1, 'step': 3}, second[4]])
    assert [entry['iter'] for entry in read_history(tmp_path) if 'AP' in entry] == [100, 200, 400]


def test_scalars_are_where_mmengine_writes_them(tmp_path: Path) -> None:
    from mmengine.visualization import LocalVisBackend

    backend = LocalVisBackend(str(tmp_path / 'now' / 'vis_data'))
    for entry in SCALARS:
        backend.add_scalars(dict(entry) | {'coco/cat_precision': float('nan')}, step=entry['step'])
    assert [entry['step'] for entry in read_history(tmp_path)] == [10, 1, 20, 2]


def test_the_last_metric_is_the_last_evaluations() -> None:
    assert last_metric(SCALARS, 'coco/segm_mAP') == 0.4
    assert last_metric(SCALARS[:2], 'coco/segm_mAP') == 0.2


def test_a_metric_that_was_never_evaluated_is_a_key_error() -> None:
    with pytest.raises(KeyError, match='the run logged no mIoU'):
        last_metric(SCALARS, 'mIoU')


def history(scalars: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{'iter': entry['step'] * 10 if entry['step'] < 10 else entry['step']} | entry for entry in scalars]


@pytest.mark.parametrize('scalars', [SCALARS, SCALARS[:1], SCALARS[::2], SCALARS[1::2], []])
def test_curves_are_a_png_whatever_there_is(tmp_path: Path, scalars: list[dict[str, float]]) -> None:
    plot_curves(history(scalars), tmp_path / 'curves.png')
    assert cv2.imread(str(tmp_path / 'curves.png')).shape == (495, 1430, 3)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures instead of the files that they would have been saved to."""
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *args, **kwargs: figures.append(figure))
    return figures


def labelled(axes: Axes) -> dict[str, tuple[list, list]]:
    """The points of each curve that the legend names."""
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith('_')}
    assert [text.get_text() for text in axes.get_legend().texts] == list(lines)
    return {name: (list(line.get_xdata()), list(line.get_ydata())) for name, line in lines.items()}


def test_losses_rate_and_metrics_are_drawn_over_iterations(drawn: list[Figure]) -> None:
    plot_curves(history(SCALARS), 'curves.png')
    losses, metrics, rate = drawn[0].axes
    assert labelled(losses) == {
        'loss': ([10, 20], [3.0, 2.0]),
        'loss_cls': ([10, 20], [2.0, 1.0]),
        'loss_mask': ([20], [1.0]),
    }
    assert labelled(metrics) == {
        'coco/bbox_mAP: 0.3': ([10, 20], [0.1, 0.3]),
        'coco/segm_mAP: 0.4': ([10, 20], [0.2, 0.4]),
    }
    assert rate.lines[0].get_ydata().tolist() == [0.1, 0.2]
    assert losses.get_yscale() == 'log'
    assert metrics.get_ylim()[0] == 0
    for axes in (rate, metrics):
        assert axes.get_shared_x_axes().joined(axes, losses)


def test_both_panels_have_one_axis_of_iterations(drawn: list[Figure]) -> None:
    losses = [{'iter': i, 'lr': 0.1, 'loss': 1.0} for i in range(4, 93, 4)]
    plot_curves([*losses, {'iter': 104, 'step': 104, 'coco/bbox_mAP': 0.1}], 'curves.png')
    ranges = {axes.get_xlim() for axes in drawn[0].axes}
    assert len(ranges) == 1
    ((left, right),) = ranges
    assert left <= 4 < 104 <= right


def test_a_single_point_is_shown(drawn: list[Figure]) -> None:
    plot_curves(history(SCALARS[:2]), 'curves.png')
    losses, metrics, _ = drawn[0].axes
    for axes in (losses, metrics):
        assert all(line.get_marker() in ('.', 'o') for line in axes.lines)


def test_curves_that_have_a_colour_in_common_have_another_style(drawn: list[Figure]) -> None:
    plot_curves([{'iter': 1, 'lr': 0.1, 'loss': 9.0} | {f'a{i:02}_loss': 1.0 for i in range(15)}], 'curves.png')
    lines = drawn[0].axes[0].lines
    assert (lines[0].get_label(), lines[0].get_color()) == ('loss', 'black'), 'the sum comes first'
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in lines}) == 16


@pytest.mark.parametrize(
    ('logged', 'named'),
    [
        (
            {'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_50': 0.2, 'coco/bbox_mAP_s': -1.0, 'coco/cat_precision': 0.3},
            ['coco/bbox_mAP: 0.1'],
        ),
        ({'coco/AR@100': 0.1, 'coco/AR@1000': 0.2, 'coco/AR_s@1000': 0.3}, ['coco/AR@1000: 0.2', 'coco/AR@100: 0.1']),
        ({'aAcc': 80.0, 'mIoU': 40.126, 'mAcc': 50.0}, ['aAcc: 80', 'mAcc: 50', 'mIoU: 40.13']),
    ],
)
def test_of_the_metrics_the_headlines_are_drawn(
    logged: dict[str, float], named: list[str], drawn: list[Figure]
) -> None:
    plot_curves([{'iter': 10, 'step': 1, 'time': 0.1, 'data_time': 0.1} | logged], 'curves.png')
    assert sorted(labelled(drawn[0].axes[1])) == sorted(named)


def test_losses_of_inner_decoder_layers_are_left_out(drawn: list[Figure]) -> None:
    losses = {'loss': 3.0, 'loss_cls': 1.0, 'd0.loss_cls': 1.0, 'decode.d10.loss_mask': 1.0, 's0.loss_cls': 1.0}
    plot_curves([{'iter': 1, 'lr': 0.1} | losses], 'curves.png')
    assert list(labelled(drawn[0].axes[0])) == ['loss', 'loss_cls', 's0.loss_cls']


def test_noise_is_smoothed_and_still_shown(drawn: list[Figure]) -> None:
    noise = np.random.default_rng(0).random(200)
    plot_curves([{'iter': i, 'lr': 0.1, 'loss': value} for i, value in enumerate(noise)], 'curves.png')
    ((_, smooth),) = labelled(drawn[0].axes[0]).values()
    raw = drawn[0].axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(raw, noise)
    assert smooth[100] == pytest.approx(noise[96:105].mean())
    assert smooth[0] == pytest.approx(noise[:5].mean())
    assert len(smooth) == 200
