from __future__ import annotations

import subprocess
import sys

import mmengine
import pytest
import torch
from costs import Costs
from golden import TINY, image, weights
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn
from torch._dynamo.testing import CompileCounter

from cvt_dense import CheckpointError, CvT


def tiny(**settings: object) -> CvT:
    return CvT(arch=TINY, **settings)


def test_maps_are_contiguous_whatever_the_input_layout() -> None:
    model = tiny().eval()
    x = torch.randn(2, 3, 41, 56)
    with torch.no_grad():
        maps, same = model(x), model(x.contiguous(memory_format=torch.channels_last))
    assert isinstance(maps, tuple)
    assert [m.shape for m in maps] == [(2, 16, 10, 14), (2, 48, 5, 7), (2, 96, 3, 4)]
    for ours, theirs in zip(maps, same):
        assert ours.is_contiguous()
        assert theirs.is_contiguous()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('out_norm', [True, False])
def test_roi_align_of_mmcv_reads_the_maps_as_torchvision_does(out_norm: bool) -> None:
    from mmcv.ops import roi_align
    from torchvision.ops import roi_align as reference

    with torch.no_grad():
        maps = tiny(out_norm=out_norm).eval()(torch.randn(2, 3, 64, 96))
    boxes = torch.tensor([[0, 4.0, 6.0, 50.0, 40.0], [1, 20.0, 3.0, 90.0, 60.0]])
    for x, stride in zip(maps, (4, 8, 16)):
        ours = roi_align(x, boxes, (7, 7), 1 / stride, 2, 'avg', True)
        theirs = reference(x, boxes, (7, 7), 1 / stride, 2, aligned=True)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_out_indices_choose_the_maps_and_what_is_built() -> None:
    model = tiny(out_indices=(1,))
    assert (model.out_channels, model.out_strides) == ((48,), (8,))
    assert not any(name.startswith(('stage2', 'norm0', 'norm2')) for name, _ in model.named_parameters())
    (x,) = model(torch.randn(1, 3, 32, 32))
    assert x.shape == (1, 48, 4, 4)
    x.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert CvT('cvt-w24', out_indices=(0,)).out_channels == (192,)


def test_all_parameters_get_gradients_from_the_last_map_alone() -> None:
    model = tiny(out_indices=(2,))
    model(torch.randn(2, 3, 32, 32))[0].square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_out_norm_is_a_fresh_layer_norm_per_map() -> None:
    x = torch.randn(1, 3, 32, 32)
    normed, raw = tiny(out_norm=True).eval(), tiny(out_norm=False).eval()
    assert not any(name.startswith('norm') for name in raw.state_dict())
    normed.load_state_dict(normed.state_dict() | raw.state_dict())
    with torch.no_grad():
        for i, (ours, theirs) in enumerate(zip(normed(x), raw(x))):
            expected = nn.functional.layer_norm(theirs.permute(0, 2, 3, 1), theirs.shape[1:2]).permute(0, 3, 1, 2)
            torch.testing.assert_close(ours, expected, msg=f'map {i}')


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2])
@pytest.mark.parametrize('norm_eval', [True, False])
def test_frozen_means_frozen_also_after_train(frozen_stages: int, norm_eval: bool) -> None:
    model = tiny(frozen_stages=frozen_stages, norm_eval=norm_eval, drop_path_rate=0.5).eval().train()
    model.norm0.weight.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sum(x.square().sum() for x in model(torch.randn(4, 3, 32, 32))).backward()
    for index, stage in enumerate(model.stages):
        frozen = index <= frozen_stages
        assert all(p.requires_grad != frozen and (p.grad is None) == frozen for p in stage.parameters())
        assert all(m.training != frozen for m in stage.modules() if not isinstance(m, nn.BatchNorm2d))
        for name, module in stage.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.training == (not frozen and not norm_eval)
                unchanged = torch.equal(module.running_mean, before[f'stage{index}.{name}.running_mean'])
                assert unchanged == (frozen or norm_eval)
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith('norm'))


def test_what_is_frozen_gives_the_same_maps_in_training() -> None:
    model = tiny(frozen_stages=2, drop_path_rate=0.9)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        for trained, evaluated in zip(model.train()(x), model.eval()(x)):
            torch.testing.assert_close(trained, evaluated)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(out_indices=()), 'out_indices must be a list of stages in rising order, from 0 to 2'),
        (dict(out_indices=2), 'out_indices must be a list of stages in rising order, from 0 to 2, got 2'),
        (dict(frozen_stages=None), 'frozen_stages must lie between'),
        (dict(in_channels=0), 'in_channels must be a positive integer, got 0'),
        (dict(window_size=0), 'window_size must hold'),
        (dict(out_indices=(1, 0)), 'rising order'),
        (dict(out_indices=(0, 3)), 'from 0 to 2'),
        (dict(frozen_stages=3), r'frozen_stages must lie between -1 \(none\) and 2, got 3'),
        (dict(frozen_stages=1, out_indices=(0,)), r'between -1 \(none\) and 0'),
        (dict(drop_path_rate=-0.1), 'drop_path_rate'),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


@pytest.mark.parametrize(
    ('init_cfg', 'message'),
    [
        (dict(type='Pretrained'), 'init_cfg names no checkpoint'),
        (dict(type='Pretrained', checkpoint=None), 'init_cfg names no checkpoint'),
        (dict(type='Pretrained', checkpoint='cvt-13-224x224-in1k', prefx='backbone'), "an unknown key 'prefx'"),
    ],
)
def test_an_init_cfg_that_nothing_would_read_is_refused(init_cfg: dict[str, object], message: str) -> None:
    model = tiny(init_cfg=init_cfg)
    with pytest.raises(CheckpointError, match=message):
        model.init_weights()
    assert model.init_cfg == init_cfg


def test_initialising_leaves_the_init_cfg_as_it_was() -> None:
    for init_cfg in (None, [], dict(type='TruncNormal', layer='Linear', std=0.5)):
        model = tiny(init_cfg=init_cfg)
        model.init_weights()
        assert model.init_cfg == init_cfg
    assert 0.4 < model.stage1.blocks[0].mlp.fc1.weight.std() < 0.6


def test_initialising_a_backbone_by_itself_is_one_line(tmp_path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save(weights(tiny(out_norm=False)), tmp_path / 'tiny.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth'))
    constant = dict(type='Constant', layer='LayerNorm', val=0.5)
    for init_cfg, expected in (
        (None, 'tensors are random: init_cfg names no checkpoint'),
        (constant, 'tensors are random or as Constant made them: init_cfg names no checkpoint'),
        (pretrained, 'tiny.pth'),
        ([constant, pretrained], 'tiny.pth'),
    ):
        MMLogger.get_instance(f'alone with {init_cfg}')  # it writes to what is captured now
        tiny(init_cfg=init_cfg).init_weights()
        out, err = capfd.readouterr()
        (line,) = (out + err).splitlines()
        assert 'CvT: ' in line
        assert expected in line


def test_a_second_initialisation_leaves_trained_weights(tmp_path) -> None:
    torch.save(weights(tiny(out_norm=False)), tmp_path / 'tiny.pth')
    model = tiny(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth')))
    model.init_weights()
    torch.nn.init.zeros_(model.stage0.patch_embed.proj.weight)
    model.init_weights()
    assert not model.stage0.patch_embed.proj.weight.any()


def test_within_a_model_mmengine_reports_each_parameter_to_the_log_file(tmp_path) -> None:
    torch.save(weights(tiny(out_norm=False)), tmp_path / 'tiny.pth')

    class Detector(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = tiny(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth')))
            self.head = nn.Linear(2, 2)

    MMLogger.get_instance('a run with a file', log_file=str(tmp_path / 'run.log'))
    Detector().init_weights()
    log = (tmp_path / 'run.log').read_text()
    reported = log.split('backbone.stage1.blocks.1.attn.proj_q.weight - torch.Size([48, 48]):')[1]
    assert 'Initialized by user-defined `init_weights` in CvT' in reported.splitlines()[1]
    assert 'CvT: ' in log


def test_no_tensor_grows_with_queries_times_keys() -> None:
    model = tiny(norm_eval=True).train()
    x = torch.randn(1, 3, 256, 256)
    with Costs() as costs:
        sum(m.mean() for m in model(x)).backward()
    # Stage 0 has 64 * 64 queries and 32 * 32 keys; the MLP's hidden layer is four times as wide as its 16 channels.
    assert costs.largest == 64 * 64 * 64 < 64 * 64 * 32 * 32


@pytest.mark.parametrize('window_size', [None, 5, ('pretrain', 7, [3, None])])
def test_it_compiles_without_graph_breaks_and_not_anew_for_every_size(window_size: object) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    model = tiny(window_size=window_size).eval()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    sizes = ((64, 96), (65, 97), (96, 160), (128, 131), (200, 300), (333, 222), (160, 160))
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(1, 3, *size)
            for got, want in zip(compiled(x), model(x)):
                torch.testing.assert_close(got, want)
    # PyTorch has two kernels for convolutions and chooses by the number of elements, once for each of two stages.
    assert counter.frame_count <= 3


@pytest.mark.parametrize('window_size', [None, 5])
def test_compiled_gradients_are_those_of_eager_mode(window_size: int | None) -> None:
    torch._dynamo.reset()
    model = CvT(TINY | dict(depths=(1, 1, 1)), window_size=window_size, drop_path_rate=0.0).train()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True, dynamic=True)
    for size in ((64, 96), (65, 131)):
        x = torch.randn(2, 3, *size)
        gradients = []
        for run in (model, compiled):
            sum(m.square().mean() for m in run(x)).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
            model.zero_grad(set_to_none=True)
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize('window_size', [None, 5])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_lower_precision_stays_close_and_trains(dtype: torch.dtype, tolerance: float, window_size: int | None) -> None:
    model = tiny(window_size=window_size).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.autocast('cpu', dtype):
        lower = model(x)
    for got, want in zip(lower, model(x)):
        assert got.dtype == dtype
        assert got.is_contiguous()
        assert (got.float() - want).abs().max() <= tolerance * want.abs().max()
    sum(m.float().mean() for m in lower).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmengine'])
def test_is_built_from_every_scope(scope: str) -> None:
    if scope == 'mmdet':
        from mmdet.registry import MODELS as registry
    elif scope == 'mmseg':
        from mmseg.registry import MODELS as registry
    else:
        registry = MODELS
    with mmengine.registry.DefaultScope.overwrite_default_scope(scope):
        model = registry.build(dict(type='CvT', arch='cvt-13', out_indices=(0,)))
        assert isinstance(model, CvT)
        assert isinstance(MODELS.build(dict(type='CvT', arch='cvt-13', out_indices=(0,))), CvT)


def test_an_older_torch_is_named() -> None:
    code = """
import torch
torch.__version__ = type(torch.__version__)('2.5.1+cpu')
import cvt_dense
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert 'ImportError: cvt_dense needs torch 2.6 or later' in result.stderr
    assert '2.5.1+cpu' in result.stderr


def test_an_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    import cvt_dense

    with pytest.raises(AttributeError, match="no attribute 'CvT99'"):
        _ = cvt_dense.CvT99


def test_init_weights_loads_a_pretrained_checkpoint(tmp_path) -> None:
    source = tiny(out_norm=False)
    torch.save(weights(source), tmp_path / 'tiny.pth')
    model = tiny(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth')))
    model.init_weights()
    for name, tensor in weights(source).items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.init_cfg['checkpoint'].endswith('tiny.pth')
    with torch.no_grad():
        assert all(x.isfinite().all() for x in model.eval()(image(64, 96, 2)))


def test_other_initialisers_work_beside_a_checkpoint(tmp_path) -> None:
    torch.save(weights(tiny(out_norm=False)), tmp_path / 'tiny.pth')
    constant = dict(type='Constant', layer='LayerNorm', val=0.5, bias=0.0)
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth'))
    model = tiny(init_cfg=[constant, pretrained])
    model.init_weights()
    assert (model.norm0.weight == 0.5).all()
    assert not (model.stage0.patch_embed.norm.weight == 0.5).any()
