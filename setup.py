"""Packaging of cvt_dense.

Besides the package, ``configs/`` and ``tools/`` are laid into ``cvt_dense/.mim``, where
OpenMMLab's ``mim`` looks for them: as copies in a wheel, as links in an editable install.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_ITEMS = ('configs', 'tools', 'model-index.yml')


def read(name: str) -> str:
    """The text of a file of the checkout; empty if it is not there."""
    path = ROOT / name
    return path.read_text(encoding='utf-8') if path.exists() else ''


def version() -> str:
    """The version, without importing the package, which would need torch."""
    return re.search(r"^__version__ = '([^']+)'", read('cvt_dense/version.py'), re.MULTILINE).group(1)


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


ONEDL = [
    'onedl-mmengine>=0.10.8',
    'onedl-mmcv>=2.3',
    'onedl-mmdetection>=3.5',
    'onedl-mmsegmentation>=1.4',
    'setuptools<81',
]
OPENMMLAB = [
    'mmengine>=0.10',
    'mmcv>=2.0',
    'mmdet>=3.0',
    'mmsegmentation>=1.0',
    'ftfy',
    'regex',
    'setuptools<81',
]
EXPORT = ['onnx', 'onnxscript', 'onnxruntime']
DEMO = ['scikit-image', 'matplotlib']
TENSORBOARD = ['tensorboard']
TESTS = ['pytest', 'pytest-xdist', 'hypothesis', 'transformers', *TENSORBOARD]

# What a build leaves in the checkout goes again: a stale build/ would get into the next wheel.
BUILT_HERE = {'bdist_wheel', 'sdist', 'dist_info', 'egg_info', 'editable_wheel'} & set(sys.argv)
leftovers = [path for path in (ROOT / 'build', ROOT / 'cvt_dense.egg-info') if BUILT_HERE and not path.exists()]

try:
    setup(
        name='cvt_dense',
        version=version(),
        description='CvT, the convolutional vision Transformer, as a backbone for detection and segmentation',
        long_description=read('README.md'),
        long_description_content_type='text/markdown',
        license='Apache-2.0',
        keywords=['computer vision', 'object detection', 'semantic segmentation', 'vision transformer'],
        classifiers=[
            'Development Status :: 4 - Beta',
            'Intended Audience :: Science/Research',
            'Operating System :: POSIX :: Linux',
            'Programming Language :: Python :: 3',
            'Programming Language :: Python :: 3.10',
            'Programming Language :: Python :: 3.11',
            'Programming Language :: Python :: 3.12',
            'Topic :: Scientific/Engineering :: Image Recognition',
        ],
        packages=find_packages(include=['cvt_dense', 'cvt_dense.*']),
        package_data={'cvt_dense': ['**/*.safetensors']},
        cmdclass={'build_py': BuildPyWithMim},
        python_requires='>=3.10',
        # No mm package here: two stacks carry the same import names, and pulling in the other one would
        # break a project that has either. The extras name them.
        install_requires=[
            'torch',  # 2.6 or later, which the package checks itself: another torch would break a compiled mmcv
            'timm>=1.0.20',
            'safetensors>=0.4',
            'huggingface_hub>=0.20',
            'filelock',
            'tqdm',
            'numpy>=1.22',
        ],
        extras_require={
            'onedl': ONEDL,
            'openmmlab': OPENMMLAB,
            'export': EXPORT,
            'demo': DEMO,
            'tensorboard': TENSORBOARD,
            'tests': TESTS,
            'dev': [*TESTS, 'ruff', *DEMO, *EXPORT],
        },
        zip_safe=False,
    )
finally:
    for path in leftovers:
        remove(path)
