"""What a run says first: what it is, and no more."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import METRICS, OPTIM_WRAPPER_CONSTRUCTORS
from pycocotools.coco import COCO
from small_regression import config as small_config
from torch import nn

from cvt_dense.engine import launch
from cvt_dense.engine.console import in_the_file_only

pytestmark = pytest.mark.usefixtures('launch_environment')


@METRICS.register_module(force=True)
class Nothing(BaseMetric):
    """Says something as it is built."""

    def __init__(self) -> None:
        super().__init__()
        print('a print of my own')
        COCO().createIndex()

    def process(self, *_: Any) -> None: ...

    def compute_metrics(self, *_: Any) -> dict[str, float]:
        return {}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class Talkative(DefaultOptimWrapperConstructor):
    """Warns of each parameter, as mmengine's own does of those that are frozen."""

    def __call__(self, model: nn.Module) -> Any:
        for number in range(9):
            print_log(f'parameter {number} is frozen', logger='current', level=logging.WARNING)
        return super().__call__(model)


def config(work_dir: Path, by_epoch: bool = True, **settings: Any) -> Config:
    """Of a run of the little model, with validation, at the level of messages that is usual."""
    cfg = small_config(work_dir, by_epoch, workers=0)
    cfg.merge_from_dict(
        dict(
            log_level='INFO',
            launcher='none',
            log_processor=dict(by_epoch=by_epoch),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1), checkpoint=dict(interval=100, max_keep_ckpts=2)
            ),
            val_dataloader=dict(
                batch_size=3,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(type='Numbers', pipeline=[dict(type='AddNoise')], metainfo=dict(classes=('a', 'b'))),
            ),
            val_cfg=dict(type='ValLoop'),
            val_evaluator=dict(type='Nothing'),
            train_cfg=dict(val_interval=100, val_begin=100),
        )
    )
    cfg.train_dataloader.dataset.metainfo = dict(classes=tuple('abcdefghijkl'))
    cfg.merge_from_dict(settings)
    return cfg


def said(cfg: Config, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on the console before the first loss."""
    launch.train(cfg)
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if ' loss: ' in line)
    return lines[:first]


def log_of(work_dir: Path) -> str:
    (path,) = work_dir.glob('*/*.log')
    return path.read_text()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_run_says_what_it_is_and_the_log_has_the_rest(
    by_epoch: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(config(tmp_path, by_epoch), capsys)
    assert len(lines) < 20
    rows = dict(re.findall(r'^ {4}(\w+) +(.+)$', '\n'.join(lines), re.MULTILINE))
    kind = 'epochs' if by_epoch else 'iterations'
    steps = '3 epochs of 6 iterations' if by_epoch else '15 iterations'
    log = rows.pop('log')
    assert rows == dict(
        model='Regressor, 0.0 M parameters, on cpu',
        train='17 images',
        val=f'17 images, 3 at a time, every 100 {kind}',
        classes='12: a, b, c, d, e, f, g, h, i, … l',
        steps=f'{steps}, each of 3 images',
        rate='0.1 (LinearLR), AdamW, weights averaged',
        writes=f'{tmp_path}: a checkpoint every 100 iterations (the last 2)',
    )
    path = Path(log.removesuffix(', with the environment and the whole config'))
    text = path.read_text()
    for part in ('System environment', 'Config:\n', 'Hooks will be executed', 'training:\n    model'):
        assert part in text
        assert (part.rstrip('\n') in '\n'.join(lines)) == part.startswith('training')


def test_warnings_are_shown_the_first_of_a_kind_and_prints_but_for_those_of_coco(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(config(tmp_path, **{'optim_wrapper.constructor': 'Talkative'}), capsys)
    frozen = [line.rpartition(' - ')[2] for line in lines if 'frozen' in line]
    assert frozen == [
        'parameter 0 is frozen',
        'parameter 1 is frozen',
        '7 more like "parameter 0 is frozen" are in the log file',
    ]
    assert log_of(tmp_path).count('is frozen\n') == 9
    assert 'a print of my own' in lines
    assert 'index created!' not in lines


def test_whoever_asks_for_more_gets_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '\n'.join(said(config(tmp_path, log_level='DEBUG'), capsys))
    assert 'System environment' in text
    assert 'index created!' in text


def test_an_error_in_building_leaves_the_console_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config(tmp_path, **{'custom_hooks': [dict(type='NoSuchHook')]})
    with pytest.raises(Exception, match='NoSuchHook'):
        launch.train(cfg)
    logger = MMLogger.get_current_instance()
    logger.info('shown again')
    assert 'shown again' in capsys.readouterr().out


def test_without_a_log_file_nothing_is_kept_back(capsys: pytest.CaptureFixture[str]) -> None:
    logger = MMLogger('without a file')
    with in_the_file_only(logger):
        logger.info('nowhere else')
    assert 'nowhere else' in capsys.readouterr().out


def test_rows_that_cannot_be_told_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config(tmp_path)
    del cfg.train_dataloader.dataset.metainfo
    lines = said(cfg, capsys)
    names = [line.split()[0] for line in lines if line.startswith('    ')]
    assert names == ['model', 'train', 'val', 'steps', 'rate', 'writes', 'log']
