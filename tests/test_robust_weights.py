"""Checkpoints and disks as they come in real life: each ends in a run that went through, or in one line."""

from __future__ import annotations

import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.utils import import_modules_from_strings
from robust import QUICK_SEGMENTATION, SEGMENTATION, LabelMaps, Outcome, Run, run  # noqa: F401  run is the fixture
from torch import nn

from cvt_dense.engine import run_checkpoints
from cvt_dense.engine.checkpoint_files import read_checkpoint
from cvt_dense.errors import CheckpointError, UserError

Content = dict[str, Any]


@pytest.fixture
def go(run: Run, tmp_path: Path) -> Callable[..., Outcome]:  # noqa: F811
    """Runs a tool on a segmentor."""
    LabelMaps(tmp_path / 'data')
    return lambda tool, *arguments, **options: run(tool, SEGMENTATION, *arguments, **(QUICK_SEGMENTATION | options))


class Payload:
    """Is pickled as a call of the system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (self.command,)


def with_weights(content: Mapping[str, Any], **changed: Any) -> Content:
    return {**content, 'state_dict': {**content['state_dict'], **changed}}


NORM = 'backbone.stage1.blocks.0.norm1.weight'
RESUME, TEST, START = 'resume', 'test', 'start'
DAMAGED = 'is damaged, incomplete or not a checkpoint'
#: What is made of a checkpoint's bytes and content, and what each use of it says; None: it works.
CASES: dict[str, tuple[Callable[[bytes, Content], bytes | Content | None], dict[str, str | None]]] = {
    'truncated': (lambda raw, _: raw[: len(raw) // 2], dict.fromkeys((RESUME, TEST, START), DAMAGED)),
    'empty': (lambda raw, _: b'', dict.fromkeys((RESUME, TEST, START), DAMAGED)),
    'a text': (lambda raw, _: b'hello', dict.fromkeys((RESUME, TEST, START), DAMAGED)),
    'a folder': (lambda raw, _: None, dict.fromkeys((RESUME, TEST, START), 'is a folder, not a file')),
    'of a ResNet': (
        lambda raw, _: {'state_dict': {'layer1.0.conv1.weight': torch.zeros(64, 64, 1, 1)}},
        {RESUME: "has no 'meta'", TEST: 'lacks backbone.stage0', START: 'lacks backbone.stage0'},
    ),
    'of another variant': (
        lambda raw, content: with_weights(content, **{NORM: torch.ones(192)}),
        dict.fromkeys((RESUME, TEST, START), f'has other shapes for {NORM}'),
    ),
    'a tensor short': (
        lambda raw, content: content | {'state_dict': {k: v for k, v in content['state_dict'].items() if k != NORM}},
        dict.fromkeys((RESUME, TEST, START), f'lacks {NORM}'),
    ),
    'not a number': (
        lambda raw, content: with_weights(content, **{NORM: torch.full((64,), float('nan'))}),
        dict.fromkeys((RESUME, TEST, START), f'has values that are not finite in {NORM}'),
    ),
    'infinite': (
        lambda raw, content: with_weights(content, **{NORM: torch.full((64,), float('inf'))}),
        dict.fromkeys((RESUME, TEST, START), f'has values that are not finite in {NORM}'),
    ),
    'a program': (
        lambda raw, content: content | {'extra': Payload('touch executed')},
        dict.fromkeys((RESUME, TEST, START), 'was refused: it is damaged, or holds more than plain weights'),
    ),
    'weights alone': (
        lambda raw, content: content['state_dict'],
        {RESUME: "has no 'meta', so no run can go on from it", TEST: None, START: None},
    ),
    'no optimizer': (
        lambda raw, content: {key: value for key, value in content.items() if key != 'optimizer'},
        {RESUME: "has no 'optimizer', so no run can go on from it", TEST: None, START: None},
    ),
    'whole': (lambda raw, _: raw, dict.fromkeys((RESUME, TEST, START))),
}


def write(path: Path, content: bytes | Content | None) -> None:
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


@pytest.fixture(scope='module')
def segmentor() -> nn.Module:
    cfg = Config.fromfile(SEGMENTATION)
    import_modules_from_strings(['mmseg.models', 'cvt_dense'])
    with MODELS.switch_scope_and_registry('mmseg') as registry:
        return registry.build(cfg.model)


USES: dict[str, Callable[[nn.Module, str], None]] = {
    RESUME: lambda model, path: run_checkpoints.check_weights(model, path, resume=True),
    TEST: run_checkpoints.check_weights,
    START: lambda model, path: run_checkpoints.check_weights(model, path, whole=False),
}


@pytest.mark.parametrize('use', USES)
@pytest.mark.parametrize('case', CASES)
def test_every_kind_of_checkpoint_for_every_use(case: str, use: str, segmentor: nn.Module, tmp_path: Path) -> None:
    content = dict(state_dict=segmentor.state_dict(), meta=dict(iter=1, epoch=0), optimizer={})
    make, told = CASES[case]
    torch.save(content, tmp_path / 'whole.pth')
    path = tmp_path / 'a.pth'
    write(path, make((tmp_path / 'whole.pth').read_bytes(), content))
    expected = told[use]
    with pytest.raises(UserError, match=re.escape(expected)) if expected else nullcontext() as error:
        run_checkpoints.check_checkpoint(str(path))
        USES[use](segmentor, str(path))
    assert not Path('executed').exists()
    if expected:
        assert '\n' not in str(error.value)
        assert str(path) in str(error.value)


def test_the_tools_look_at_checkpoints_before_they_use_them(go: Callable[..., Outcome], tmp_path: Path) -> None:
    """Of what mmengine would load with a warning at most."""
    go('train').assert_works()
    content = dict(read_checkpoint(str(tmp_path / 'run/iter_1.pth')))
    path = tmp_path / 'a.pth'
    for case in ('not a number', 'a program'):
        write(path, CASES[case][0](b'', content))
        go('train', '--resume', path).assert_fails(str(path), CASES[case][1][RESUME])
        go('test', path).assert_fails(str(path), CASES[case][1][TEST])
    go('train', load_from=path).assert_fails(str(path), 'Trying to load unsupported GLOBAL posix.system')
    assert not Path('executed').exists()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, whom no permission binds."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / 'a.pth'
        torch.save({}, path)
        path.chmod(0)
        with as_nobody(), pytest.raises(CheckpointError, match=r'a\.pth may not be read: Permission denied'):
            read_checkpoint(str(path))


def test_a_work_directory_that_cannot_be_written_stops_the_run_at_once(go: Callable[..., Outcome]) -> None:
    """Nobody may make folders in /sys, root neither."""
    outcome = go('train', work_dir=Path('/sys/cvt_dense'))
    outcome.assert_fails('/sys/cvt_dense')
    assert 'Iter(train)' not in outcome.log


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system write no file beyond a size, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_costs_no_checkpoint(go: Callable[..., Outcome], tmp_path: Path) -> None:
    options = {'default_hooks.checkpoint.max_keep_ckpts': 1}
    go('train', **options, **{'train_cfg.max_iters': 1}).assert_works()
    whole = (tmp_path / 'run/iter_1.pth').read_bytes()
    with largest_file(len(whole) // 2):
        outcome = go('train', '--resume', **options)
    outcome.assert_fails('iter_2.pth', 'go on from', 'iter_1.pth with cd ')
    assert sorted(path.name for path in (tmp_path / 'run').rglob('*.pt*')) == ['iter_1.pth']
    assert (tmp_path / 'run/iter_1.pth').read_bytes() == whole
    go('train', '--resume', **options).assert_works('resumed epoch: 0, iter: 1')
