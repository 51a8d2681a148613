"""The documentation's code blocks and commands, for the tests that hold them to the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from paths import ROOT

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
#: The programs that the documentation calls. Stubs write down what they are called with, one call a record.
PROGRAMS = (
    'python',
    'torchrun',
    'srun',
    'make',
    'bash',
    'pip',
    'tensorboard',
    'apt-get',
    'uv',
    'git',
    'cd',
    'cp',
    'tar',
    'sed',
    'source',
)
STUBS = ''.join(f'{name}() {{ printf "%s\\x1f" {name} "$@"; printf "\\x1e"; }} >> calls\n' for name in PROGRAMS)


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    return re.findall(rf'^ *```{language}\n(.*?)^ *```', path.read_text(), re.DOTALL | re.MULTILINE)


def scripts(path: Path) -> list[str]:
    """The bash blocks of a page, and the commands in its text."""
    return blocks(path, 'bash') + re.findall(r'`((?:\w+=\S+ )*python tools/[^`]*)`', path.read_text())


def calls(script: str, folder: Path) -> list[list[str]]:
    """The programs that a script calls, each with its arguments as bash hands them over; nothing is run.

    Args:
        script: Run by bash with stubs for programs; any other than those in PROGRAMS is an error.
        folder: Empty, to run in.
    """
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    subprocess.run(
        ['/bin/bash', '-ec', f'{STUBS}\n{script.replace("…", "")}'],
        cwd=folder,
        env={'PATH': '', 'CVT_DENSE_DATA': 'data'},
        check=True,
    )
    return [record.split('\x1f')[:-1] for record in (folder / 'calls').read_text().split('\x1e')[:-1]]
