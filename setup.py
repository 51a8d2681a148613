"""What only code can say of the packaging; the rest is in ``pyproject.toml``.

Besides the package, ``configs/`` and ``tools/`` are laid into ``cvt_dense/.mim``, where
OpenMMLab's ``mim`` looks for them: as copies in a wheel, as links in an editable install.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_ITEMS = ('configs', 'tools', 'model-index.yml')


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


class BuildPyWithMim(build_py):
    """Lays the ``.mim`` folder into what is built or, for an editable install, into the checkout."""

    def run(self) -> None:
        super().run()
        package = ROOT if getattr(self, 'editable_mode', False) else Path(self.build_lib)
        mim = package / 'cvt_dense' / '.mim'
        remove(mim)
        mim.mkdir(parents=True)
        for source in (ROOT / item for item in MIM_ITEMS):
            if not source.exists():
                continue
            if getattr(self, 'editable_mode', False):
                (mim / source.name).symlink_to(os.path.relpath(source, mim))
            elif source.is_dir():
                shutil.copytree(source, mim / source.name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy(source, mim)


# What a build leaves in the checkout goes again: a stale build/ would get into the next wheel.
BUILT_HERE = {'bdist_wheel', 'sdist', 'dist_info', 'egg_info', 'editable_wheel'} & set(sys.argv)
leftovers = [path for path in (ROOT / 'build', ROOT / 'cvt_dense.egg-info') if BUILT_HERE and not path.exists()]

try:
    setup(cmdclass={'build_py': BuildPyWithMim})
finally:
    for path in leftovers:
        remove(path)
