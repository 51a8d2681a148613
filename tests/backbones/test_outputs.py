"""Whatever is read of the maps, each parameter has a gradient; and the map that comes after the last stage."""

from __future__ import annotations

from itertools import chain, combinations
from typing import Any

import pytest
import torch
from golden import TINY, image, weights
from torch import nn

from cvt_dense import CvT
from cvt_dense.backbones import multi_scale
from cvt_dense.backbones.outputs import tied

FOUR = (0, 1, 2, 3)


def tiny(**settings: Any) -> CvT:
    return CvT(**(dict(arch=TINY | dict(depths=(1, 1, 1)), drop_path_rate=0.0) | settings)).train()


def loss(maps: tuple[torch.Tensor, ...], read: tuple[int, ...]) -> torch.Tensor:
    """Not the mean, which LayerNorm takes away."""
    return sum(maps[i].square().mean() * (i + 1) + maps[i][:, 0].mean() for i in read)


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(out_indices=FOUR),
        dict(out_indices=(0, 3)),
        dict(out_indices=(1, 2)),
        dict(out_indices=FOUR, norm_eval=False),
        dict(out_indices=FOUR, out_norm=False),
        dict(out_indices=FOUR, with_cp=True, norm_eval=False),
        dict(out_indices=FOUR, frozen_stages=0),
        dict(out_indices=FOUR, frozen_stages=1, with_cp=True),
        dict(out_indices=FOUR, frozen_stages=2),
        dict(out_indices=FOUR, frozen_stages=2, out_norm=False),
        dict(out_indices=(0, 1, 2), frozen_stages=0, out_norm=False),
        dict(out_indices=FOUR, window_size=3),
    ],
    ids=str,
)
def test_each_parameter_has_a_gradient_whatever_is_read(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(**settings)
    x = torch.randn(2, 3, 37, 52)
    count = len(model.out_indices)
    for read in chain.from_iterable(combinations(range(count), size) for size in range(1, count + 1)):
        maps = model(x)
        assert all(m.requires_grad for m in maps)
        loss(maps, read).backward()
        ours = gradients(model)
        assert [name for name, gradient in ours.items() if gradient is None] == [], read
        with monkeypatch.context() as patch:
            patch.setattr(multi_scale, 'tied', list)
            untied = loss(model(x), read)
            if untied.requires_grad:
                untied.backward()
        for name, theirs in gradients(model).items():
            expected = torch.zeros_like(ours[name]) if theirs is None else theirs
            torch.testing.assert_close(ours[name], expected, msg=lambda m, what=(read, name): f'{what}: {m}')


def test_without_tying_a_map_that_is_not_read_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rule above is there for."""
    monkeypatch.setattr(multi_scale, 'tied', list)
    model = tiny()
    loss(model(torch.randn(1, 3, 32, 32)), (1, 2)).backward()
    assert {name for name, gradient in gradients(model).items() if gradient is None} == {'norm0.weight', 'norm0.bias'}


@pytest.mark.parametrize('out_norm', [True, False])
@pytest.mark.parametrize('mode', [True, False])
@pytest.mark.parametrize('side', [16, 33])
def test_heads_may_change_each_map_in_place(side: int, mode: bool, out_norm: bool) -> None:
    """At 16 pixels, the last maps are of one pixel, which is contiguous in any order of its dimensions."""
    model = tiny(out_indices=FOUR, out_norm=out_norm).train(mode)
    x = torch.randn(1, 3, side, side)
    wanted = [m.detach().clone() for m in model(x)]
    loss(tuple(m.relu() for m in model(x)), (0, 1, 2, 3)).backward()
    expected = gradients(model)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0)):
        maps = model(x)
        for i in order:
            nn.functional.relu_(maps[i])
        for got, want in zip(maps, wanted):
            torch.testing.assert_close(got, want.relu())
        loss(maps, (0, 1, 2, 3)).backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[name], msg=lambda m, name=name: f'{name}: {m}')
    with torch.no_grad():
        for got, want in zip([m.relu_() for m in model(x)], wanted):
            torch.testing.assert_close(got, want.relu())


def test_maps_are_contiguous_to_every_reader() -> None:
    """A map of one pixel too has the strides of NCHW, which compiled code reads."""
    for side in (16, 40):
        for m in tiny(out_indices=FOUR)(torch.randn(2, 3, side, side)):
            assert m.stride() == torch.empty(m.shape).stride()


def test_nothing_is_tied_where_no_gradient_is_recorded() -> None:
    x, y = torch.zeros(2), torch.zeros(3)
    assert all(a is b for a, b in zip(tied([x, y]), [x, y]))
    x.requires_grad_()
    (alone,) = tied([x])
    assert alone is x
    with torch.no_grad():
        assert tied([x, y])[0] is x
    assert all(output.requires_grad for output in tied([x, y]))


def test_second_derivatives_go_through() -> None:
    x, y = (torch.randn(3, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *inputs: [a**3 for a in tied(inputs)], (x, y))
    assert torch.autograd.gradgradcheck(lambda *inputs: [a**3 for a in tied(inputs)], (x, y))


def test_functional_gradients_go_through() -> None:
    model = tiny(out_indices=FOUR)
    parameters = dict(model.named_parameters())
    x = torch.randn(2, 3, 32, 32)

    ours = torch.func.grad(lambda given: loss(torch.func.functional_call(model, given, (x,)), (1,)))(parameters)
    loss(model(x), (1,)).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize('read', [(0,), (1, 3)])
def test_compiled_models_have_the_same_gradients(read: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    model = tiny(out_indices=FOUR)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True, dynamic=True)
    for size in ((64, 96), (65, 131)):
        x = torch.randn(2, 3, *size)
        loss(model(x), read).backward()
        expected = gradients(model)
        loss(compiled(x), read).backward()
        for name, gradient in gradients(model).items():
            assert gradient is not None, name
            torch.testing.assert_close(gradient, expected[name], msg=lambda m, name=name: f'{name}: {m}')


def test_a_graph_of_fx_gives_the_same_gradients() -> None:
    model = tiny(out_indices=FOUR)
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(1, 3, 48, 40)
    loss(model(x), (1,)).backward()
    expected = gradients(model)
    loss(traced(x), (1,)).backward()
    ours = gradients(model)
    for name, gradient in expected.items():  # which folds BatchNorm, and the graph does not
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3)


def test_exported_and_traced_models_hold_no_function_of_python() -> None:
    model = tiny(out_indices=FOUR).eval()
    x = torch.randn(1, 3, 64, 64)
    wanted = model(x)
    exported = torch.export.export(model, (x,), strict=False)
    traced = torch.jit.trace(model, x, check_trace=False)
    assert not any('PythonOp' in node.kind() for node in traced.inlined_graph.nodes())
    for got in (exported.module()(x), traced(x)):
        for a, b in zip(got, wanted):
            torch.testing.assert_close(a, b)


def test_a_map_after_the_last_stage_has_twice_its_stride() -> None:
    model = tiny(out_indices=FOUR)
    assert model.out_channels == (16, 48, 96, 96)
    assert model.out_strides == (4, 8, 16, 32)
    for height, width in ((16, 16), (33, 100), (64, 224)):
        maps = model(torch.randn(2, 3, height, width))
        (h, w), last = maps[2].shape[2:], maps[3]
        assert last.shape == (2, 96, (h + 1) // 2, (w + 1) // 2)
    alone = tiny(out_indices=(3,))
    assert (alone.out_channels, alone.out_strides, alone.num_stages) == ((96,), (32,), 3)
    assert not any(name.startswith('norm') for name in alone.state_dict())
    assert not hasattr(tiny(), 'downsample')
    assert CvT('cvt-w24', out_indices=(1, 3)).out_channels == (768, 1024)
    two = CvT(dict(embed_dims=(8, 16), num_heads=(1, 2), depths=(1, 1)), out_indices=(0, 2))
    assert (two.out_channels, two.out_strides) == ((8, 16), (4, 16))


@pytest.mark.parametrize('out_norm', [True, False])
def test_the_map_after_the_last_stage_is_a_convolution_and_norm_of_its_raw_map(out_norm: bool) -> None:
    model = tiny(out_indices=FOUR, out_norm=out_norm).eval()
    raw = tiny(out_norm=False).eval()
    raw.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name.startswith('stage')})
    nn.init.normal_(model.downsample.norm.bias)
    x = torch.randn(2, 3, 72, 41)
    with torch.no_grad():
        proj, norm = model.downsample.proj, model.downsample.norm
        expected = nn.functional.conv2d(raw(x)[2], proj.weight, proj.bias, stride=2, padding=1).permute(0, 2, 3, 1)
        expected = nn.functional.layer_norm(expected, (96,), norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)
        torch.testing.assert_close(model(x)[3], expected, atol=1e-5, rtol=1e-5)


def test_a_pretrained_checkpoint_covers_all_but_the_map_after_it(tmp_path) -> None:
    source = tiny(out_norm=False)
    torch.save(weights(source), tmp_path / 'tiny.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth'))
    model, plain = tiny(out_indices=FOUR, init_cfg=pretrained), tiny(init_cfg=pretrained)
    fresh = model.downsample.proj.weight.clone()
    for loaded in (model, plain):
        loaded.init_weights()
    assert torch.equal(model.downsample.proj.weight, fresh)
    with torch.no_grad():
        for got, want in zip(model.eval()(image(64, 96, 1)), plain.eval()(image(64, 96, 1))):
            torch.testing.assert_close(got, want)


def test_only_stages_can_be_frozen() -> None:
    model = tiny(out_indices=FOUR, frozen_stages=2)
    trainable = {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {'norm0', 'norm1', 'norm2', 'downsample'}
    with pytest.raises(ValueError, match=r'frozen_stages must lie between -1 \(none\) and 2, got 3'):
        tiny(out_indices=FOUR, frozen_stages=3)


def test_the_map_after_the_last_stage_is_as_deep_as_heads() -> None:
    model = tiny(out_indices=FOUR)
    last = sum(len(stage.blocks) + 1 for stage in model.stages)
    for name in ('downsample.proj.weight', 'downsample.norm.bias', 'norm0.weight'):
        assert model.get_layer_depth(f'backbone.{name}', 'backbone.') == (last, last + 1)


def test_weights_are_drawn_anew_with_the_rest() -> None:
    model = tiny(out_indices=FOUR)
    before = model.downsample.proj.weight.clone()
    model.reset_parameters()
    assert not torch.equal(model.downsample.proj.weight, before)
