"""What each family promises as a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmengine
import pytest
import torch
from costs import Costs
from families import FAMILIES, Family, each_family
from golden import weights
from mmengine.registry import MODELS
from torch import nn
from torch._dynamo.testing import CompileCounter

from cvt_dense.apis.export import Exportable, export


@each_family
def test_maps_are_contiguous_whatever_the_input_layout(family: Family) -> None:
    model = family.build().eval()
    x = torch.randn(2, 3, 41, 56)
    with torch.no_grad():
        maps, same = model(x), model(x.contiguous(memory_format=torch.channels_last))
    assert isinstance(maps, tuple)
    sizes = family.map_sizes(41, 56, family.num_stages)
    assert [m.shape for m in maps] == [(2, channels, *size) for channels, size in zip(family.tiny['embed_dims'], sizes)]
    for ours, theirs in zip(maps, same):
        assert ours.is_contiguous()
        assert theirs.is_contiguous()
        torch.testing.assert_close(ours, theirs)


@each_family
@pytest.mark.parametrize('out_norm', [True, False])
def test_roi_align_of_mmcv_reads_the_maps_as_torchvision_does(family: Family, out_norm: bool) -> None:
    from mmcv.ops import roi_align
    from torchvision.ops import roi_align as reference

    model = family.build(out_norm=out_norm).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 64, 96))
    boxes = torch.tensor([[0, 4.0, 6.0, 50.0, 40.0], [1, 20.0, 3.0, 90.0, 60.0]])
    for x, stride in zip(maps, model.out_strides):
        ours = roi_align(x, boxes, (7, 7), 1 / stride, 2, 'avg', True)
        theirs = reference(x, boxes, (7, 7), 1 / stride, 2, aligned=True)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@each_family
def test_out_indices_choose_the_maps_and_what_is_built(family: Family) -> None:
    model = family.build(out_indices=(1,))
    channels = family.tiny['embed_dims'][1]
    assert (model.out_channels, model.out_strides) == ((channels,), (8,))
    assert model.num_stages == 2
    assert {place.stage for name in model.state_dict() if (place := model.place_of(name))} == {0, 1}
    assert [name for name, _ in model.named_parameters() if name.startswith('norm')] == ['norm1.weight', 'norm1.bias']
    (x,) = model(torch.randn(1, 3, 32, 32))
    assert x.shape == (1, channels, 4, 4)
    x.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@each_family
def test_a_variant_says_what_it_returns_without_being_built(family: Family) -> None:
    found = family.backbone.returned_maps()
    assert found.channels == family.default
    assert found.strides == (4, 8, 16, 32)[: len(found.channels)]
    assert found.most == len(found.channels) + 1
    assert family.backbone.returned_maps(family.tiny, (0, 1)).channels == family.tiny['embed_dims'][:2]


@each_family
@pytest.mark.parametrize('window_size', [None, 3])
def test_each_parameter_has_a_gradient_from_the_last_map_alone(family: Family, window_size: int | None) -> None:
    model = family.build(out_indices=(family.num_stages - 1,), window_size=window_size)
    model(torch.randn(2, 3, 48, 64))[0].square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@each_family
@pytest.mark.parametrize('read', [0, -1])
@pytest.mark.parametrize('settings', [dict(), dict(with_cp=True, norm_eval=False), dict(frozen_stages=1)], ids=str)
def test_each_parameter_has_a_gradient_whichever_map_is_read(
    family: Family, settings: dict[str, Any], read: int
) -> None:
    model = family.build(out_indices=range(family.num_stages + 1), **settings).train()
    model(torch.randn(2, 3, 37, 52))[read].square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@each_family
def test_out_norm_is_a_fresh_layer_norm_per_map(family: Family) -> None:
    x = torch.randn(1, 3, 32, 32)
    normed, raw = family.build(out_norm=True).eval(), family.build(out_norm=False).eval()
    assert not any(name.startswith('norm') for name in raw.state_dict())
    normed.load_state_dict(normed.state_dict() | raw.state_dict())
    with torch.no_grad():
        for i, (ours, theirs) in enumerate(zip(normed(x), raw(x))):
            expected = nn.functional.layer_norm(theirs.permute(0, 2, 3, 1), theirs.shape[1:2]).permute(0, 3, 1, 2)
            torch.testing.assert_close(ours, expected, msg=f'map {i}')


@each_family
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2])
@pytest.mark.parametrize('norm_eval', [True, False])
def test_frozen_means_frozen_also_after_train(family: Family, frozen_stages: int, norm_eval: bool) -> None:
    model = family.build(frozen_stages=frozen_stages, norm_eval=norm_eval, drop_path_rate=0.5).eval().train()
    model.norm0.weight.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sum(x.square().sum() for x in model(torch.randn(4, 3, 32, 32))).backward()

    def is_frozen(name: str) -> bool:
        place = model.place_of(name)
        return place is not None and place.stage <= frozen_stages

    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != is_frozen(name), name
        assert (parameter.grad is None) == is_frozen(name), name
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (not is_frozen(name) and not norm_eval), name
            unchanged = torch.equal(module.running_mean, before[f'{name}.running_mean'])
            assert unchanged == (is_frozen(name) or norm_eval), name
        else:
            assert module.training != is_frozen(name), name
    assert frozen_stages < 0 or is_frozen(f'{family.first_layer}.weight')


@each_family
def test_what_is_frozen_gives_the_same_maps_in_training(family: Family) -> None:
    model = family.build(frozen_stages=family.num_stages - 1, drop_path_rate=0.9)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        for trained, evaluated in zip(model.train()(x), model.eval()(x)):
            torch.testing.assert_close(trained, evaluated)


@each_family
def test_layers_are_counted_from_the_image_on(family: Family) -> None:
    model = family.build(out_indices=range(family.num_stages + 1))
    depths = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()}
    last = sum(family.tiny['depths']) + family.num_stages
    assert {number for _, number in depths.values()} == {last + 1}
    assert {depth for depth, _ in depths.values()} == set(range(last + 1))
    assert depths[f'{family.first_layer}.weight'][0] == 0
    for name in ('norm0.weight', 'downsample.proj.weight', 'downsample.norm.bias'):
        assert depths[name][0] == last
    assert model.get_layer_depth('neck.conv.weight', 'backbone.') == (last, last + 1)
    ordered = [depth for name, (depth, _) in depths.items() if 'relative_pos' not in name]
    assert sorted(ordered) == ordered or family.name == 'CMT'  # whose embeddings are registered with their blocks


@each_family
@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            dict(out_indices=()),
            'out_indices must be a list of stages in rising order, from 0 to {last}, or to {most} for',
        ),
        (dict(out_indices=2), 'out_indices must be a list of stages in rising order, from 0 to {last}, .*, got 2'),
        (dict(out_indices=(1, 0)), 'rising order'),
        (dict(out_indices=(0, 5)), 'from 0 to {last}, or to {most}'),
        (dict(out_indices=(-1,)), 'from 0 to {last}'),
        (dict(frozen_stages=None), 'frozen_stages must lie between'),
        (dict(frozen_stages=4), r'frozen_stages must lie between -1 \(none\) and {last}, got 4'),
        (dict(frozen_stages=1, out_indices=(0,)), r'between -1 \(none\) and 0'),
        (dict(in_channels=0), 'in_channels must be a positive integer, got 0'),
        (dict(window_size=0), 'window_size must hold'),
        (dict(drop_path_rate=-0.1), 'drop_path_rate'),
    ],
)
def test_wrong_settings_are_named(family: Family, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.format(last=family.num_stages - 1, most=family.num_stages)):
        family.build(**settings)


@each_family
def test_wrong_input_is_one_line_with_the_family_and_its_smallest_size(family: Family) -> None:
    model, side = family.build().eval(), family.min_size
    with torch.no_grad():
        assert all(m.isfinite().all() for m in model(torch.randn(1, 3, side, side)))
    for x, message in (
        (torch.zeros(1, 3, side - 1, 99), f'{family.name} takes at least one image of at least {side}x{side} pixels'),
        (torch.zeros(3, 99, 99), rf'{family.name} takes \(N, 3, H, W\) images, got shape \(3, 99, 99\)'),
        (torch.zeros(1, 3, 99, 99, dtype=torch.uint8), f'{family.name} takes floating-point images, got torch.uint8'),
    ):
        with pytest.raises(ValueError, match=f'^{message}'):
            model(x)


@each_family
def test_no_tensor_grows_with_queries_times_keys(family: Family) -> None:
    model = family.build(norm_eval=True).train()
    with Costs() as costs:
        sum(m.mean() for m in model(torch.randn(1, 3, 256, 256))).backward()
    # Stage 0 has 64 * 64 queries, and at least 8 * 8 keys; the MLP's hidden layer is the widest there is.
    assert costs.largest == 64 * 64 * family.hidden


@each_family
@pytest.mark.parametrize('window_size', [None, 5])
def test_it_compiles_without_graph_breaks_and_not_anew_for_every_size(family: Family, window_size: object) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    model = family.build(arch=family.small, out_indices=(0, 1), window_size=window_size).eval()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    # Not smaller: PyTorch has two kernels for convolutions, chooses by the number of elements, and compiles for either.
    sizes = ((288, 296), (289, 300), (333, 280), (311, 290))
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(1, 3, *size)
            for got, want in zip(compiled(x), model(x)):
                torch.testing.assert_close(got, want)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ('family', 'window_size', 'sizes'),
    [
        ('cvt', None, [(64, 96), (65, 131)]),
        # A graph for any size takes a minute to make.
        ('cvt', 5, [(65, 131)]),
        ('cmt', None, [(65, 131)]),
        ('cmt', 5, [(65, 131)]),
    ],
)
def test_compiled_gradients_are_those_of_eager_mode(
    family: str, window_size: int | None, sizes: list[tuple[int, int]]
) -> None:
    torch._dynamo.reset()
    arch = FAMILIES[family].small
    if len(sizes) > 1:
        arch = {name: values[:1] for name, values in arch.items()}  # one stage
    settings = dict(arch=arch, out_indices=range(len(arch['depths'])), drop_path_rate=0.0)
    model = FAMILIES[family].build(window_size=window_size, **settings).train()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True, dynamic=len(sizes) > 1)
    for size in sizes:
        x = torch.randn(2, 3, *size)
        gradients = []
        for run in (model, compiled):
            sum(m.square().mean() for m in run(x)).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
            model.zero_grad(set_to_none=True)
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, name=name: f'{name}: {m}')


@each_family
@pytest.mark.parametrize('window_size', [None, 5])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_lower_precision_stays_close_and_trains(
    family: Family, dtype: torch.dtype, tolerance: float, window_size: int | None
) -> None:
    model = family.build(window_size=window_size).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.autocast('cpu', dtype):
        lower = model(x)
    for got, want in zip(lower, model(x)):
        assert got.dtype == dtype
        assert got.is_contiguous()
        assert (got.float() - want).abs().max() <= tolerance * want.abs().max()
    sum(m.float().mean() for m in lower).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@each_family
@pytest.mark.parametrize('window_size', [None, 3])
def test_traces_of_torch_fx_are_for_any_size(family: Family, window_size: int | None) -> None:
    model = family.build(window_size=window_size).eval()
    model.load_state_dict(weights(model))
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for size in ((1, 3, 64, 96), (2, 3, 75, 131)):
            x = torch.randn(size)
            for got, want in zip(traced(x), model(x)):  # which folds BatchNorm, and the graph does not
                torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=f'at least {family.min_size}x{family.min_size} pixels'):
        traced(torch.randn(1, 3, 8, 99))


@pytest.mark.slow
@each_family
@pytest.mark.parametrize(('suffix', 'window_size'), [('.onnx', None), ('.pt2', 5)])
def test_exported_models_are_for_any_size(family: Family, suffix: str, window_size: int | None, tmp_path: Path) -> None:
    model = family.build(arch=family.small, out_indices=(0, 1), window_size=window_size).eval()
    model.load_state_dict(weights(model))
    export(Exportable(model).eval(), tmp_path / f'model{suffix}')  # which compares
    assert (tmp_path / f'model{suffix}').is_file()


@each_family
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmengine'])
def test_is_built_from_every_scope(family: Family, scope: str) -> None:
    if scope == 'mmdet':
        from mmdet.registry import MODELS as registry
    elif scope == 'mmseg':
        from mmseg.registry import MODELS as registry
    else:
        registry = MODELS
    settings = dict(type=family.name, arch=family.small, out_indices=(0,))
    with mmengine.registry.DefaultScope.overwrite_default_scope(scope):
        assert isinstance(registry.build(settings), family.backbone)
        assert isinstance(MODELS.build(settings), family.backbone)
