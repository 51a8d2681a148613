from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.evaluation.metrics import iou_metric
from PIL import Image

from cvt_dense.engine.work_dir import make_output_folders
from cvt_dense.errors import UserError


def test_a_process_that_is_not_the_first_can_write_label_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric makes its folder in the first process alone, which may come later."""
    monkeypatch.setattr(iou_metric, 'is_main_process', lambda: False)
    folder = tmp_path / 'new' / 'maps'
    make_output_folders(Config(dict(test_evaluator=dict(type='IoUMetric', output_dir=str(folder)))), ('test',))
    metric = iou_metric.IoUMetric(output_dir=str(folder))
    metric.dataset_meta = dict(classes=('a', 'b'))
    labels = dict(data=torch.ones(1, 4, 4, dtype=torch.int64))
    metric.process({}, [dict(pred_sem_seg=labels, gt_sem_seg=labels, img_path='a.jpg')])
    assert np.array(Image.open(folder / 'a.png')).min() == 1


@pytest.mark.parametrize('style', ['one', 'list', 'evaluator'])
def test_folders_of_all_evaluators_are_made(style: str, tmp_path: Path) -> None:
    evaluator: Any = dict(type='SemSegMetric', output_dir=str(tmp_path / 'a'))
    if style == 'list':
        evaluator = [dict(type='IoUMetric'), dict(type='IoUMetric', output_dir=None), evaluator]
    elif style == 'evaluator':
        evaluator = dict(type='Evaluator', metrics=[evaluator])
    make_output_folders(Config(dict(val_evaluator=evaluator, test_evaluator=None)), ('train', 'val', 'test'))
    assert (tmp_path / 'a').is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    evaluator = dict(type='IoUMetric', output_dir=str(tmp_path / 'file' / 'maps'))
    with pytest.raises(UserError, match=r'maps cannot be written to: Not a directory; choose another'):
        make_output_folders(Config(dict(test_evaluator=evaluator)), ('test',))
