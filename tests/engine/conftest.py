"""What the tests of the engine share."""

from __future__ import annotations

import pytest


@pytest.fixture
def launch_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What launch sets is set back after each test."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
