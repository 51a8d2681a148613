"""The documentation's code blocks and commands, for the tests that hold them to the code."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    'cc',
)
STUBS = ''.join(f'{name}() {{ printf "%s\\x1f" {name} "$@"; printf "\\x1e"; }} >> calls\n' for name in PROGRAMS)


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    return re.findall(rf'^ *```{language}\n(.*?)^ *```', path.read_text(), re.DOTALL | re.MULTILINE)


def run_block(page: str, title: str, replaced: Mapping[str, str]) -> dict[str, Any]:
    """Run the one Python block that a page has below a heading of the second level.

    Args:
        page: Its name.
        title: The heading.
        replaced: Texts in the block, and what stands for them.

    Returns:
        The names that the block leaves behind.
    """
    text = (ROOT / 'docs' / f'{page}.md').read_text().partition(f'\n## {title}\n')[2].partition('\n## ')[0]
    (block,) = re.findall(r'^```python\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    for old, new in replaced.items():
        block = block.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(block, f'{page}.md: {title}', 'exec'), names)
    return names


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
