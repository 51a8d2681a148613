from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

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
    assert rate.get_shared_x_axes().joined(rate, losses)


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
