from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import export as tool
import numpy as np
import onnx
import pytest
import small_files
import torch
from paths import ROOT
from PIL import Image
from torch import nn

from cvt_dense import CvT, cli
from cvt_dense.apis import export as exporting
from cvt_dense.apis.export import CHECKED_SHAPES, AdaptiveAvgPoolByProducts, Exportable, check, export, exportable_copy
from cvt_dense.errors import UserError

UPERNET, MASK_RCNN = (f'configs/{name}_shapes.py' for name in ('upernet_cvttiny', 'maskrcnn_cvttiny_fpn'))
SMALL = ['model.backbone.arch.embed_dims=[8,16,32]', 'model.backbone.arch.depths=[1,1,1]']
SMALL_UPERNET = [*SMALL, 'model.decode_head.in_channels=[8,16,32]', 'model.auxiliary_head.in_channels=32']
SMALL_UPERNET += ['model.decode_head.channels=32', 'model.auxiliary_head.channels=32']
SMALL_MASK_RCNN = [*SMALL, 'model.backbone.init_cfg=None', 'model.neck.in_channels=[8,16,32]']
SLOW = [pytest.param(suffix, marks=pytest.mark.slow) for suffix in ('.onnx', '.pt2')]
OPENVINO = pytest.param('.xml', marks=[pytest.mark.slow, pytest.mark.skipif(not find_spec('openvino'), reason='none')])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The tool, run in this process from the root of the checkout."""
    monkeypatch.chdir(ROOT)

    def run_(*arguments: object) -> None:
        monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, arguments)])
        tool.main()

    return run_


def as_documented(name: str, folder: Path, result: str) -> str:
    """Load a file as the documentation shows it, in a process without this package and mmcv.

    Args:
        name: The file's, in the documentation too.
        folder: Where it is.
        result: What to print in the end.
    """
    page = (ROOT / 'docs/export.md').read_text()
    (block,) = [block for block in re.findall(r'```python\n(.*?)```', page, re.DOTALL) if f"'{name}'" in block]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (211, 163, 3), np.uint8)).save(folder / 'image.jpg')
    code = f'import sys\nsys.modules |= dict(cvt_dense=None, mmcv=None, mmengine=None)\n{block}\nprint({result})'
    ended = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def small_backbone(**settings: object) -> Exportable:
    """A backbone whose BatchNorms have statistics to be folded."""
    arch = dict(embed_dims=[8, 16, 32], num_heads=[1, 2, 2], depths=[1, 1, 1])
    backbone = CvT(arch, **settings)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return Exportable(backbone, mean=[120.0, 110.0, 100.0], std=[60.0, 55.0, 50.0]).eval()


@pytest.mark.parametrize('bins', [1, 2, 3, 6, (2, 5)])
def test_adaptive_pooling_by_products_is_adaptive_pooling_for_any_size(bins: int | tuple[int, int]) -> None:
    ours, theirs = AdaptiveAvgPoolByProducts(bins), nn.AdaptiveAvgPool2d(bins)
    for height in range(1, 26):
        for width in (1, 2, 5, 6, 7, 13, 24, 31):
            x = torch.randn(2, 3, height, width)
            torch.testing.assert_close(ours(x), theirs(x))


def test_the_copy_pools_by_products_and_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Conv2d(3, 3, 1)))
    copied = exportable_copy(model)
    assert [type(m[0][0]) for m in (model, copied)] == [nn.AdaptiveAvgPool2d, AdaptiveAvgPoolByProducts]


@pytest.mark.parametrize('suffix', [*SLOW, OPENVINO, '.pt'])
def test_a_backbone_is_exported_to_all_formats(suffix: str, tmp_path: Path) -> None:
    model, path = small_backbone(), tmp_path / f'model{suffix}'
    export(model, path)  # which compares
    weights = ['model.bin'] if suffix == '.xml' else []
    assert sorted(file.name for file in tmp_path.iterdir()) == [*weights, path.name]
    images = torch.rand(2, 3, 301, 150) * 255
    with torch.no_grad():
        for theirs, ours in zip(exporting.FORMATS[suffix][1](path)(images), model(images), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('suffix', [*SLOW, '.pt'])
def test_windows_are_exported_for_all_sizes(suffix: str, tmp_path: Path) -> None:
    # Windows of 96 tokens, one or two an axis in the sizes that are checked; and small ones beside a cls token.
    model = small_backbone(window_size=[96, None, 5])
    export(model, tmp_path / f'model{suffix}')
    exact = small_backbone()
    exact.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 143, 437)
    with torch.no_grad(), pytest.raises(AssertionError):  # the windows are there and matter
        torch.testing.assert_close(exact(images), model(images))


@pytest.mark.slow
def test_a_segmentor_is_exported_to_onnx_and_runs_as_the_documentation_shows(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(UPERNET, '--out', tmp_path / 'model.onnx', '--cfg-options', *SMALL_UPERNET)
    assert 'takes float32 RGB images' in capsys.readouterr().out
    assert as_documented('model.onnx', tmp_path, 'labels.shape, labels.max() < 6') == '(211, 163) True'


@pytest.mark.skipif(not find_spec('openvino'), reason='no OpenVINO')
def test_openvino_runs_a_file_as_the_documentation_shows(tmp_path: Path) -> None:
    small_files.write(small_files.SEGMENTOR, tmp_path / 'model.xml', None)
    assert as_documented('model.xml', tmp_path, 'labels.shape, labels.max() < 3') == '(211, 163) True'


def test_attention_is_no_operator_where_onnx_runtime_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError('Attention(23) is not a registered function/op')

    assert exporting.best_opset(small_backbone()) in (20, 23)
    assert exporting.best_opset(small_backbone(window_size=5)) == 20
    monkeypatch.setattr(onnxruntime, 'InferenceSession', refuse)
    assert exporting.best_opset(small_backbone()) == 20


def test_a_segmentor_gives_the_logits_that_mmseg_has(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / 'iter_1.pth'
    monkeypatch.setattr(sys, 'argv', ['', str(ROOT / UPERNET), '--out', 'a.pt', '--cfg-options', *SMALL_UPERNET])
    model = tool.build(tool.load_config(UPERNET, tool.parse_args().cfg_options), None)
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    run(UPERNET, checkpoint, '--out', tmp_path / 'model.pt', '--cfg-options', *SMALL_UPERNET)
    images = (torch.rand(1, 3, 130, 203) * 255).round()
    data = model.data_preprocessor(dict(inputs=[images[0].flip(0)]))  # BGR, as mmcv reads images
    with torch.no_grad():
        expected = model.encode_decode(data['inputs'], [dict(img_shape=(130, 203))])
        (logits,) = torch.jit.load(tmp_path / 'model.pt')(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert as_documented('model.pt', tmp_path, 'tuple(labels.shape), labels.max().item() < 6') == '(211, 163) True'


@pytest.mark.slow
def test_a_detector_is_exported_to_onnx_and_runs_as_the_documentation_shows(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(MASK_RCNN, '--out', tmp_path / 'detector.onnx', '--cfg-options', *SMALL_MASK_RCNN)
    assert 'takes float32 RGB images, (1, C, H, W)' in capsys.readouterr().out
    graph = onnx.load(tmp_path / 'detector.onnx').graph
    assert {node.domain for node in graph.node} == {''}
    assert [output.name for output in graph.output] == ['boxes', 'scores', 'labels', 'masks']
    shapes = as_documented('detector.onnx', tmp_path, 'boxes.shape[1:], masks.shape[1:], masks.dtype, labels.max() < 5')
    assert shapes == '(4,) (211, 163) bool True'


@pytest.mark.slow
def test_a_neck_is_exported_with_its_backbone(run: Callable[..., None], tmp_path: Path) -> None:
    run(MASK_RCNN, '--part', 'neck', '--out', tmp_path / 'neck.pt2', '--cfg-options', *SMALL_MASK_RCNN)
    maps = torch.export.load(tmp_path / 'neck.pt2').module()(torch.zeros(1, 3, 128, 203))
    assert [tuple(x.shape) for x in maps] == [(1, 64, 32, 51), (1, 64, 16, 26), (1, 64, 8, 13)]
    shapes = as_documented('neck.pt2', tmp_path, '*(tuple(x.shape) for x in maps)')
    assert shapes == '(1, 64, 53, 41) (1, 64, 27, 21) (1, 64, 14, 11)'


def test_what_differs_from_the_model_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'model.pt'
    path.write_text('the one before')

    monkeypatch.setattr(exporting, 'exportable_copy', lambda model: nn.Sequential(model, Scaled(1.001)))
    with pytest.raises(UserError, match=r'on 1 images of 128x131, and was not kept: it differs by 0.001'):
        export(small_backbone(), path)
    assert path.read_text() == 'the one before'
    assert list(tmp_path.iterdir()) == [path]


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(x * self.factor for x in maps)


def test_a_model_that_is_bound_to_a_size_is_refused() -> None:
    model = small_backbone()
    width = CHECKED_SHAPES[0][2]

    def fixed(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return model(images[..., :width])

    check(model, model)
    with torch.no_grad(), pytest.raises(UserError, match=r'of 226x160, and was not kept: shape|not kept: it differs'):
        check(model, fixed)

    def failing(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise RuntimeError('no such size\nmore')

    with pytest.raises(UserError, match=r'was not kept: RuntimeError: no such size$'):
        check(model, failing)


@pytest.mark.parametrize(
    ('arguments', 'line'),
    [
        (
            ('configs/dino_cvt13_coco.py', '--out', 'a.onnx'),
            'a whole DINO is not exported: take --part neck or',
        ),
        ((MASK_RCNN, '--out', 'a.pt2'), '--out a.pt2: the ending says the format, and is one of .onnx'),
        ((UPERNET, '--part', 'neck', '--out', 'a.onnx'), 'EncoderDecoder has no neck: --part backbone'),
        ((UPERNET, '--out', 'a.trt'), '--out a.trt: the ending says the format, and is one of .onnx, .xml, .pt2, .pt'),
        ((UPERNET, '--out', 'nowhere/a.onnx'), '--out nowhere/a.onnx: folder nowhere does not exist'),
        ((UPERNET, 'nowhere.pth', '--out', 'a.onnx'), 'checkpoint nowhere.pth does not exist'),
        (('configs/mask2former_cvt13_ade20k.py', '--out', 'a.onnx'), 'Mask2FormerHead does not give logits'),
    ],
)
def test_mistakes_end_as_one_line(
    arguments: tuple[str, ...], line: str, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.run(lambda: run(*arguments, '--cfg-options', 'model.backbone.init_cfg=None'))
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f'error: {line}')


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, 'find_spec', lambda name: None if 'run' in name or 'script' in name else name)
    with pytest.raises(UserError, match=r'pip install onnxscript onnxruntime$'):
        export(small_backbone(), tmp_path / 'model.onnx')


def test_what_torch_cannot_export_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError('no such argument\nmore')

    monkeypatch.setattr(torch.export, 'export', fail)
    with pytest.raises(UserError, match=r'torch \S+ cannot export this to .pt2: TypeError: no such argument$'):
        export(small_backbone(), tmp_path / 'model.pt2')
    assert list(tmp_path.iterdir()) == []
