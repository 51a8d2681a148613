"""Which files of a run are published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cvt_dense.errors import UserError
from cvt_dense.publishing.source import find_source


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / 'run'
    (folder / '20260101_000000' / 'vis_data').mkdir(parents=True)
    (folder / '20260101_000000' / 'vis_data' / 'scalars.json').write_text('{}')
    (folder / 'a.py').write_text('')
    for name in ('iter_1', 'iter_2', 'best_mIoU_iter_1'):
        torch.save(dict(state_dict={}), folder / f'{name}.pth')
    return folder


def test_of_a_folder_it_is_the_best_checkpoint_else_the_newest_else_the_one_that_is_named(run: Path) -> None:
    assert find_source(str(run)) == find_source(str(run / 'best_mIoU_iter_1.pth'))
    assert find_source(str(run)).checkpoint.name == 'best_mIoU_iter_1.pth'
    assert find_source(str(run), str(run / 'iter_1.pth')).checkpoint.name == 'iter_1.pth'
    (run / 'best_mIoU_iter_1.pth').unlink()
    found = find_source(str(run))
    assert (found.config, found.checkpoint, found.work_dir) == (run / 'a.py', run / 'iter_2.pth', run)


def test_logs_are_those_beside_the_checkpoint(run: Path, tmp_path: Path) -> None:
    assert find_source(str(run / 'a.py'), str(run / 'iter_1.pth')).work_dir == run
    torch.save({}, tmp_path / 'other.pth')
    assert find_source(str(run / 'a.py'), str(tmp_path / 'other.pth')).work_dir is None


def test_what_is_not_clear_is_asked_for(run: Path, tmp_path: Path) -> None:
    torch.save({}, run / 'best_aAcc_iter_2.pth')
    (tmp_path / 'empty').mkdir()
    for given, checkpoint, told in (
        ('nowhere', None, 'does not exist; give a config and a checkpoint'),
        ('run', None, 'best_aAcc_iter_2.pth, best_mIoU_iter_1.pth: name the one that is meant'),
        ('run', 'gone.pth', 'gone.pth does not exist'),
        ('run/a.py', None, 'name a checkpoint after it'),
        ('run/iter_1.pth', 'run/iter_2.pth', 'is neither a config'),
        ('empty', None, 'holds no checkpoint'),
    ):
        with pytest.raises(UserError, match=told):
            find_source(str(tmp_path / given), checkpoint and str(tmp_path / checkpoint))
    (run / 'b.py').write_text('')
    with pytest.raises(UserError, match=r'a.py, b.py: name the config that is meant'):
        find_source(str(run / 'iter_1.pth'))
