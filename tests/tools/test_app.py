"""Of tools/app.py what needs no Gradio; tests/browser has the page."""

from __future__ import annotations

import sys

import app
import pytest

from cvt_dense import cli


@pytest.mark.parametrize('host', ['127.0.0.1', '127.8.8.8', 'localhost', '::1', '[::1]'])
def test_addresses_of_this_machine_alone_are_known(host: str) -> None:
    assert app.is_loopback(host)


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '192.168.1.7', 'workstation', ''])
def test_all_others_may_be_reached(host: str) -> None:
    assert not app.is_loopback(host)


def test_a_score_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, 'argv', ['app.py', 'CONFIG', 'CHECKPOINT', '--score-thr', '2'])
    with pytest.raises(SystemExit) as done:
        cli.run(app.main)
    assert done.value.code == 2
    assert capsys.readouterr().err == 'error: --score-thr must lie between 0 and 1, got 2.0\n'
