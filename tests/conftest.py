"""What all tests share: seeds, and the folder of real images."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import hypothesis
import pytest
import torch
from torch.utils.data import _utils

# The same examples every time, and no limit on how long one may take on a busy machine.
hypothesis.settings.register_profile('repeatable', derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile('repeatable')


# Ctrl-C is tested too: a shell lets programs that it starts in the background ignore it, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Seconds, instead of 5, that a data loader which is garbage-collected waits for its workers, and they for an index.
_utils.MP_STATUS_CHECK_INTERVAL = _utils.worker.MP_STATUS_CHECK_INTERVAL = 0.5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _default_signals() -> Iterator[None]:
    """A tool that ran in a test's process leaves no handler of signals to the next test."""
    defaults = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
    }
    for number, handler in defaults.items():
        signal.signal(number, handler)
    yield
    for number, handler in defaults.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """A tool that ran in a test's process leaves none of its environment variables to the next test."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope='session')
def data() -> Path:
    """Folder of real images that ``CVT_DENSE_DATA`` names; whoever sets it means it to be used."""
    if 'CVT_DENSE_DATA' not in os.environ:
        pytest.skip('CVT_DENSE_DATA is not set')
    folder = Path(os.environ['CVT_DENSE_DATA']).absolute()
    assert (folder / 'coco_mini').is_dir(), f'CVT_DENSE_DATA={folder} holds no coco_mini'
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if 'gpu' in item.keywords:
                item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))
