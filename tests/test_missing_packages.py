"""What works where packages are not installed, and what says in one line which one it needs."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
from doctor_machine import PACKAGES
from mmengine.config import Config
from paths import ROOT

from cvt_dense.engine import devices, options
from cvt_dense.errors import UserError

#: Imports of these end in a ModuleNotFoundError, and importlib finds no spec for them.
HIDE = 'import sys; sys.modules.update(dict.fromkeys({!r}))\n'
TOOLKITS = ('mmengine', 'mmcv', 'mmdet', 'mmseg')


def run(code: str, *missing: str) -> tuple[str, str]:
    """Run Python in an interpreter without some packages; returns what it prints, and the last line on stderr."""
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', HIDE.format(missing) + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout, (result.stderr.strip().splitlines() or [''])[-1]


def load(config: str) -> Config:
    parser = argparse.ArgumentParser()
    options.add_common_arguments(parser)
    return options.load_config_of(parser.parse_args([str(ROOT / 'configs' / f'{config}.py')]))


IMPORT = """
import cvt_dense, timm, torch
cvt_dense.CvTTrunk('cvt-13', num_stages=1)(torch.zeros(1, 3, 16, 16))
timm.create_model('cvt_13', num_classes=0)
for _ in range(2):
    print(sorted({name.split('.')[0] for name, module in sys.modules.items() if module} & set(%r)))
    print(cvt_dense.CvT.__name__)
""" % (TOOLKITS,)  # noqa: UP031  the code has braces of its own


@pytest.mark.parametrize('missing', [('mmdet',), ('mmdet', 'mmseg', 'mmcv')])
def test_the_backbone_needs_mmengine_alone(missing: tuple[str, ...]) -> None:
    assert run(IMPORT, *missing) == ("[]\nCvT\n['mmengine']\nCvT\n", '')


def test_without_mmengine_the_trunk_works_and_the_backbone_says_what_it_needs() -> None:
    hint = 'pip install mmengine, or its maintained fork onedl-mmengine'
    assert run(IMPORT, *TOOLKITS) == ('[]\n', f'ImportError: cvt_dense.CvT needs mmengine: {hint}')


@pytest.mark.parametrize('missing', ['timm', 'torchvision'])
def test_what_pip_brings_along_is_named_by_the_import(missing: str) -> None:
    out, error = run('import cvt_dense', missing)
    assert out == ''
    assert error.startswith('ModuleNotFoundError')
    assert missing in error


def test_a_torch_that_is_too_old_is_named_by_the_import() -> None:
    old = "import torch; torch.__version__ = torch.torch_version.TorchVersion('2.5.1+cpu'); import cvt_dense"
    oldest = next(package for package in PACKAGES if package.module == 'torch').minimum['torch']
    out, error = run(old)
    assert out == ''
    assert error.startswith(f'ImportError: cvt_dense needs torch {oldest} or later')
    assert error.endswith('this is 2.5.1+cpu')


TOOLS = """
import contextlib, io, runpy
def tool(name, *arguments):
    sys.argv = [f'tools/{name}.py', *map(str, arguments)]
    lines = io.StringIO()
    try:
        with contextlib.redirect_stderr(lines):
            runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        print(f'{name}: {end.code}: {lines.getvalue().strip()}')
sys.path.insert(0, 'tools')
"""


def test_without_mmengine_each_tool_works_or_says_what_it_needs() -> None:
    code = """
for name in ('train', 'test', 'predict', 'demo', 'count_flops', 'publish_model', 'app'):
    tool(name)
tool('convert_checkpoint', '--help')
tool('validate_imagenet', '--help')
tool('benchmark', '--help')
tool('make_shapes', '--help')
"""
    out, error = run(TOOLS + code, *TOOLKITS)
    need = 'error: mmengine is not installed: pip install onedl-mmengine, or upstream mmengine (see docs/install.md)'
    for name in ('train', 'test', 'predict', 'demo', 'count_flops', 'publish_model', 'app'):
        assert f'{name}: 2: {need}\n' in out
    for name in ('convert_checkpoint', 'validate_imagenet', 'benchmark', 'make_shapes'):
        assert f'{name}: 0: \n' in out  # they get as far as their arguments
    assert error == ''


@pytest.mark.parametrize(
    ('config', 'missing', 'package'),
    [
        ('maskrcnn_cvttiny_fpn_shapes', 'mmdet', 'onedl-mmdetection, or upstream mmdet'),
        ('upernet_cvttiny_shapes', 'mmseg', 'onedl-mmsegmentation, or upstream mmsegmentation'),
        ('upernet_cvttiny_shapes', 'mmcv', '--no-build-isolation onedl-mmcv, or upstream mmcv'),
    ],
)
def test_a_config_names_the_toolkit_that_it_needs(
    config: str, missing: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError) as error:
        load(config)
    assert str(error.value) == f'{missing} is not installed: pip install {package} (see docs/install.md)'


def test_a_toolkit_that_a_config_does_not_need_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for config, missing in (('upernet_cvttiny_shapes', 'mmdet'), ('maskrcnn_cvttiny_fpn_shapes', 'mmseg')):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            assert load(config).model.backbone.type == 'CvT'


def test_mmcv_without_operators_is_named_for_a_detector_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    with pytest.raises(UserError, match=r'^mmcv has no working operators: .*; run python tools/doctor.py$'):
        devices.hide_gpu_without_operators(load('maskrcnn_cvttiny_fpn_shapes'))
    devices.hide_gpu_without_operators(load('upernet_cvttiny_shapes'))


def test_without_mmdet_a_segmentor_predicts() -> None:
    code = """
import torch
from cvt_dense.engine import devices
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
cfg = Config.fromfile('configs/upernet_cvttiny_shapes.py')
devices.use_batchnorm_without_gpu(cfg)
init_default_scope(cfg.default_scope)
model = MODELS.build(cfg.model).eval()
with torch.no_grad():
    print(tuple(model.encode_decode(torch.zeros(1, 3, 64, 64), [dict(img_shape=(64, 64))]).shape[2:]))
"""
    out, error = run(code, 'mmdet')
    assert out.endswith('(64, 64)\n'), error


def test_without_matplotlib_the_benchmark_says_so() -> None:
    out, _ = run(TOOLS + "tool('benchmark', '--help')", 'matplotlib')
    assert out == 'benchmark: 2: error: matplotlib is not installed: pip install matplotlib (see docs/install.md)\n'


def test_without_gradio_the_page_says_so() -> None:
    out, _ = run(TOOLS + "tool('app', 'CONFIG', 'CHECKPOINT')", 'gradio')
    assert out == "app: 2: error: gradio is not installed: pip install 'gradio>=6.29' (see docs/install.md)\n"
