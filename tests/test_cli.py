from __future__ import annotations

import errno
import pickle
from collections.abc import Callable

import pytest

from cvt_dense import cli
from cvt_dense.errors import CheckpointError, UserError


def ended(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a run."""
    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    return exit_.value.code, capsys.readouterr().err.splitlines()


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_a_run_that_ends_well_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: None, capsys) == (0, [])


@pytest.mark.parametrize('error', [UserError('fix this'), CheckpointError('fix this')])
def test_a_users_mistake_exits_with_2_and_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(error), capsys) == (2, ['error: fix this'])


def test_a_refused_pickle_exits_with_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = ended(raising(pickle.UnpicklingError('not allowed\nmore')), capsys)
    assert (code, lines) == (2, ['error: a checkpoint holds more than weights and was refused: not allowed'])


def test_an_empty_unpickling_error_exits_with_2_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = ended(raising(pickle.UnpicklingError()), capsys)
    assert (code, len(lines)) == (2, 1)


def test_ctrl_c_exits_with_130_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(KeyboardInterrupt()), capsys) == (130, ['stopped by SIGINT'])


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (OSError(errno.ENOSPC, 'No space left on device'), 'error: No space left on device'),
        (NotADirectoryError(errno.ENOTDIR, 'Not a directory', 'a/b'), 'error: Not a directory: a/b'),
        (OSError('the disk is gone\nmore'), 'error: the disk is gone'),
    ],
)
def test_what_the_system_refuses_exits_with_2_and_one_line(
    error: OSError, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raising(error), capsys) == (2, [line])
