from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from cvt_dense.engine.failures import cannot_be_built, in_one_line
from cvt_dense.errors import UserError


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, maps: list[torch.Tensor], labels: torch.Tensor | None = None) -> torch.Tensor:
        if len(maps) != 2:
            raise AssertionError
        return self.fc(maps[0])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = Head()

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.head(maps, labels=torch.zeros(3))


@MODEL_WRAPPERS.register_module(force=True)
class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The log file of the run in which an error happens."""
    logger = MMLogger.get_instance('failures', log_file=str(tmp_path / 'run.log'))
    monkeypatch.setattr(MMLogger, 'get_current_instance', classmethod(lambda cls: logger))
    yield next(Path(h.baseFilename) for h in logger.handlers if isinstance(h, logging.FileHandler))
    MMLogger._instance_dict.pop('failures')


def fails(tmp_path: Path, model: nn.Module, call: Callable[[], Any], what: str = 'training') -> str:
    runner = SimpleNamespace(model=model, iter=6, work_dir=str(tmp_path), log_dir=str(tmp_path))
    with pytest.raises(UserError) as error, in_one_line(runner, what):
        call()
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('wrap', [lambda model: model, Wrapper])
def test_the_innermost_module_and_the_shapes_are_named(
    tmp_path: Path, log: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model = wrap(Model())
    line = fails(tmp_path, model, lambda: model([torch.zeros(3, 5), torch.zeros(1)]))
    assert line.startswith(
        'training fails at iteration 7 in model.head.fc (Linear, weight 2x4) given 3x5: RuntimeError: '
    )
    assert line.endswith(f'; the stack trace is in {log}; no checkpoint has been written yet')
    assert 'Traceback (most recent call last)' in log.read_text()
    assert 'mat1 and mat2' in log.read_text()


def test_an_assertion_without_a_message_is_shown_itself(tmp_path: Path, log: Path) -> None:
    model = Model()
    line = fails(tmp_path, model, lambda: model([torch.zeros(3, 4)]))
    expected = r'in model\.head \(Head\) given \[3x4\], 3: AssertionError: raise AssertionError'
    assert re.search(rf'{expected} \(test_failures\.py:\d+\)', line)


def test_what_fails_outside_of_the_model_is_a_line_too(tmp_path: Path, log: Path) -> None:
    line = fails(tmp_path, Model(), lambda: {}['gt_masks'], 'evaluation')
    assert line == f"evaluation fails: KeyError: 'gt_masks'; the stack trace is in {log}"


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB'),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_where_memory_runs_out_what_needs_less_is_named(tmp_path: Path, log: Path, error: Exception) -> None:
    def run_out() -> None:
        raise error

    line = fails(tmp_path, Model(), run_out)
    assert 'training fails at iteration 7: no memory (' in line
    assert 'lower train_dataloader.batch_size' in line


def test_a_process_without_a_log_file_writes_the_trace_beside_the_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger('without a file')
    monkeypatch.setattr(MMLogger, 'get_current_instance', classmethod(lambda cls: logger))
    line = fails(tmp_path, Model(), lambda: {}['x'])
    assert line.endswith(f'the stack trace is in {tmp_path}/rank_0.log; no checkpoint has been written yet')
    assert 'KeyError' in (tmp_path / 'rank_0.log').read_text()


@pytest.mark.parametrize('error', [UserError('a line'), OSError(28, 'No space left on device')])
def test_what_is_a_line_already_stays_as_it_is(tmp_path: Path, error: Exception) -> None:
    runner = SimpleNamespace(model=Model(), iter=0, work_dir=str(tmp_path), log_dir=str(tmp_path))
    with pytest.raises(type(error)) as raised, in_one_line(runner, 'training'):
        raise error
    assert raised.value is error


def test_what_cannot_be_built_says_why(log: Path) -> None:
    error = cannot_be_built('the config', AssertionError('only on GPUs'))
    assert str(error) == f'the config cannot be built: AssertionError: only on GPUs; the stack trace is in {log}'
    already = UserError('a line')
    assert cannot_be_built('the config', already) is already
