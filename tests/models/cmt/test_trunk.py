from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from golden import CMT_TINY, DATA, CMTClassifier, image, weights

from cvt_dense.analysis.flops import count_macs
from cvt_dense.models.cmt import ARCHS, CMTTrunk
from cvt_dense.models.trunk import Place

TOLERANCE = 1e-5  # of each map's largest value
GOLDEN = DATA / 'cmt'
#: Parameters with a head of 1000 classes, tensors of the state dict and multiply-accumulate operations (10^9) at the
#: size of the images that the bias is made for.
VARIANTS = {
    'cmt-ti': (160, 9_492_426, 708, 0.639),
    'cmt-xs': (192, 15_247_208, 911, 1.547),
    'cmt-s': (224, 26_256_160, 1079, 4.032),
    'cmt-b': (256, 45_715_076, 1366, 9.317),
}


def tiny(pretrain_size: Any = 64) -> CMTClassifier:
    model = CMTClassifier(CMT_TINY, 64, 10, pretrain_size=pretrain_size)
    model.load_state_dict(weights(model))
    return model.eval()


def sizes_in(golden: Any) -> list[tuple[str, int, int]]:
    names = sorted({key.split('.')[0] for key in golden.files if 'x' in key})
    assert names
    return [(name, *map(int, name.split('x'))) for name in names]


def assert_agrees(model: CMTClassifier, x: torch.Tensor, golden: Any, name: str, tolerance: float = TOLERANCE) -> None:
    with torch.no_grad():
        maps, logits = model(x)
    assert len(maps) == 4
    if f'{name}.stage0.sum' in golden:  # a published variant's are stored sub-sampled
        for stage, y in enumerate(maps):
            largest, total = float(golden[f'{name}.stage{stage}.absmax']), float(golden[f'{name}.stage{stage}.sum'])
            assert float(y.abs().max()) == pytest.approx(largest, rel=tolerance)
            assert float(y.double().sum()) == pytest.approx(total, abs=tolerance * largest * y.numel())
        maps, logits = [y[0, ::8, ::5, ::5] for y in maps], logits.reshape(-1)[::10]
    for what, y in (*((f'stage{i}', y) for i, y in enumerate(maps)), ('logits', logits)):
        expected = golden[f'{name}.{what}']
        difference = np.abs(y.numpy() - expected).max() / np.abs(expected).max()
        print(f'{name} {what}: off by {difference:.1e} of the largest value')  # shown by pytest -rP
        assert y.shape == expected.shape
        assert difference <= tolerance, (name, what)


def test_outputs_are_the_references_on_the_grid_of_each_table() -> None:
    """The reference takes multiples of 32, and one pixel less; each size has a table of its own."""
    golden = np.load(GOLDEN / 'tiny.npz')
    for name, height, width in sizes_in(golden):
        model = tiny((-(-height // 32) * 32, -(-width // 32) * 32))
        assert_agrees(model, image(height, width, 2), golden, name)


def test_outputs_are_the_references_in_double_precision() -> None:
    """Where a wrong eps of the LayerNorms would show."""
    assert_agrees(tiny().double(), image(64, 64, 1).double(), np.load(GOLDEN / 'tiny_float64.npz'), '64x64', 1e-12)


@pytest.mark.parametrize('with_bias', [False, True])
def test_outputs_are_the_references_at_any_size(with_bias: bool) -> None:
    golden = np.load(GOLDEN / ('tiny_any_size_bicubic64.npz' if with_bias else 'tiny_any_size_nobias.npz'))
    model = tiny()
    for name, parameter in model.named_parameters():
        if name.startswith('relative_pos') and not with_bias:
            torch.nn.init.zeros_(parameter)
    for name, height, width in sizes_in(golden):
        assert_agrees(model, image(height, width, 2), golden, name)


@pytest.mark.parametrize('variant', VARIANTS)
def test_outputs_of_the_published_variants_are_the_references(variant: str) -> None:
    golden = np.load(GOLDEN / f'{variant.replace("-", "_")}.npz')
    for name, height, width in sizes_in(golden):
        model = CMTClassifier(variant, 1280, 1000, pretrain_size=(height, width))
        assert sum(p.numel() for p in model.parameters()) == int(golden[f'{name}.num_params'])
        model.load_state_dict(weights(model))
        x = image(height, width, 1)
        with torch.no_grad():
            maps, logits = model.eval()(x)
        # In double precision: the reference's own rounding is most of the tolerance, 6.4e-6 for CMT-B, and ours, with
        # the order of sums of another processor, may add to it.
        assert_agrees(model.double(), x.double(), golden, name)
        with torch.no_grad():
            exact_maps, exact_logits = model(x.double())
        for y, exact in zip((*maps, logits), (*exact_maps, exact_logits), strict=True):
            assert (y - exact).abs().max() <= TOLERANCE * exact.abs().max()


@pytest.mark.parametrize('variant', VARIANTS)
def test_parameters_tensors_and_macs_are_as_published(variant: str) -> None:
    side, parameters, tensors, gmacs = VARIANTS[variant]
    assert ARCHS[variant].pretrain_size == side
    with torch.device('meta'):
        model = CMTClassifier(variant, 1280, 1000)
        counted = count_macs(model, side, side) / 1e9
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    print(f'{variant}: {counted:.3f} GMACs')
    assert counted == pytest.approx(gmacs, abs=0.0006)


def test_parameter_names_and_shapes_are_the_references() -> None:
    published = json.loads((GOLDEN / 'official_cmt_s_keys.json').read_text())
    with torch.device('meta'):
        trunk = {key: list(tensor.shape) for key, tensor in CMTTrunk('cmt-s').state_dict().items()}
    heads = {key for key in published if key.startswith(('_fc.', '_bn.', 'head.'))}
    assert trunk == {key: shape for key, shape in published.items() if key not in heads}


def test_all_parts_of_a_trunk_have_a_place() -> None:
    trunk = CMTTrunk(CMT_TINY)
    places = {name: trunk.place_of(name) for name in trunk.state_dict()}
    assert None not in places.values()
    for name in ('stem_conv1.weight', 'relative_pos_a', 'patch_embed_a.norm.bias'):
        assert places[name] == Place(0, None)
    assert places['blocks_c.1.attn.q.weight'] == Place(2, 1)
    assert trunk.place_of('blocks_d') == Place(3, None)
    assert trunk.place_of('blocks_d.0') == Place(3, 0)
    assert trunk.place_of('norm0.weight') is None
    assert {place.stage for place in places.values() if place} == {0, 1, 2, 3}


def test_settings_reach_their_blocks() -> None:
    arch = CMT_TINY | dict(mlp_ratio=[4, [1, 2], 3, 2], kv_stride=[4, 4, 1, 1])
    trunk = CMTTrunk(arch, drop_path_rate=0.5, window_size=[7, [None, 3], 'pretrain', None], pretrain_size=(64, 96))
    blocks = [block for stage in trunk.stages for block in stage.blocks]
    assert [block.mlp.proj.out_channels / block.proj.out_channels for block in blocks] == [4, 1, 2, 3, 3, 2]
    assert [block.attn.sr is not None for block in blocks] == [True, True, True, False, False, False]
    assert [block.attn.window_size for block in blocks] == [7, None, 3, 6, 6, None]
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert trunk.relative_pos_b.shape == (2, 8 * 12, 2 * 3)
    assert trunk.min_size == 31


def test_the_smallest_size_leaves_a_key_in_each_stage() -> None:
    for strides, smallest in (((8, 4, 2, 1), 31), ((2, 2, 2, 2), 63), ((1, 1, 1, 1), 31), (16, 511)):
        trunk = CMTTrunk(CMT_TINY | dict(kv_stride=strides, pretrain_size=smallest)).eval()
        assert trunk.min_size == smallest
        with torch.no_grad():
            assert all(y.isfinite().all() for y in trunk(torch.randn(1, 3, smallest, smallest)))
        with pytest.raises(ValueError, match=f'CMT takes at least one image of at least {smallest}x{smallest} pixels'):
            trunk(torch.randn(1, 3, smallest - 1, smallest))


def test_weights_are_drawn_as_the_authors_do() -> None:
    trunk = CMTTrunk('cmt-ti')
    block = trunk.blocks_c[0]
    assert float(trunk.relative_pos_a.detach().std()) == pytest.approx(1, rel=0.02)
    assert float(block.attn.q.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(block.mlp.conv1[0].weight.detach().std()) == pytest.approx((2 / 662) ** 0.5, rel=0.05)
    assert float(block.mlp.proj.weight.detach().std()) == pytest.approx((2 / 662 / 9) ** 0.5, rel=0.05)
    biases = [module.bias for module in trunk.modules() if getattr(module, 'bias', None) is not None]
    assert not any(bias.any() for bias in biases)
