from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from cvt_dense.curves import last_metric, plot_curves, read_scalars

SCALARS = [
    {'lr': 0.1, 'loss': 3.0, 'loss_cls': 2.0, 'epoch': 1, 'iter': 10, 'step': 10},
    {'coco/bbox_mAP': 0.1, 'coco/segm_mAP': 0.2, 'step': 1},
    {'lr': 0.1, 'loss': 2.0, 'loss_cls': 1.0, 'loss_mask': 1.0, 'epoch': 2, 'iter': 20, 'step': 20},
    {'coco/bbox_mAP': 0.3, 'coco/segm_mAP': 0.4, 'step': 2},
]


def test_scalars_are_read_in_the_order_of_writing(tmp_path: Path) -> None:
    folder = tmp_path / '20250101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(entry) + '\n' for entry in SCALARS) + '\n')
    assert read_scalars(tmp_path, '20250101_000000') == SCALARS
    assert read_scalars(str(tmp_path), '20250101_000000') == SCALARS


def test_scalars_are_where_mmengine_writes_them(tmp_path: Path) -> None:
    from mmengine.visualization import LocalVisBackend

    backend = LocalVisBackend(str(tmp_path / 'now' / 'vis_data'))
    for entry in SCALARS:
        backend.add_scalars(dict(entry), step=entry['step'])
    assert read_scalars(tmp_path, 'now') == SCALARS


def test_the_last_metric_is_the_last_evaluations() -> None:
    assert last_metric(SCALARS, 'coco/segm_mAP') == 0.4
    assert last_metric(SCALARS[:2], 'coco/segm_mAP') == 0.2


def test_a_metric_that_was_never_evaluated_is_a_key_error() -> None:
    with pytest.raises(KeyError, match='the run logged no mIoU'):
        last_metric(SCALARS, 'mIoU')


@pytest.mark.parametrize('scalars', [SCALARS, [SCALARS[0]], SCALARS[::2]], ids=['all', 'one step', 'no metrics'])
def test_curves_are_a_png(tmp_path: Path, scalars: list[dict[str, float]]) -> None:
    plot_curves(scalars, tmp_path / 'curves.png')
    picture = cv2.imread(str(tmp_path / 'curves.png'))
    assert picture.shape == (440, 1210, 3)
    assert picture.std() > 0


def test_metrics_are_drawn_at_the_iteration_before_them_and_losses_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *args, **kwargs: drawn.append(figure))
    plot_curves(SCALARS, tmp_path / 'curves.png')
    losses, metrics = (
        {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
        for axes in drawn[0].axes
    )
    assert losses == {
        'loss': ([10, 20], [3.0, 2.0]),
        'loss_cls': ([10, 20], [2.0, 1.0]),
        'loss_mask': ([20], [1.0]),
    }
    assert metrics == {'coco/segm_mAP': ([10, 20], [0.2, 0.4]), 'coco/bbox_mAP': ([10, 20], [0.1, 0.3])}
