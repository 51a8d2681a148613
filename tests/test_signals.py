from __future__ import annotations

import subprocess
import sys

import pytest
from paths import ROOT

SIGNALLED_IN = {
    'a destructor': 'class Thing:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\nThing()',
    'what is called around a fork': (
        'os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))\n'
        'if os.fork() == 0:\n    os._exit(0)\nos.wait()'
    ),
}


@pytest.mark.parametrize('place', SIGNALLED_IN)
def test_an_interruption_that_cannot_go_further_is_noted_without_a_trace(place: str) -> None:
    code = f"""
import os, signal
from cvt_dense.signals import signals
signals.listen()
{SIGNALLED_IN[place]}
print(signals.number)
class Faulty:
    def __del__(self):
        raise ValueError('a fault of its own')
Faulty()
"""
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == '15\n'
    assert 'Interrupted' not in run.stderr
    assert 'a fault of its own' in run.stderr
