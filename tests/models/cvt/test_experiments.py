"""What the paper compares CvT with, and what helps from scratch, as settings of the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import with_statistics
from golden import TINY
from torch import nn

from cvt_dense import CvT, CvTClassifier, CvTTrunk
from cvt_dense.apis.export import Exportable, export
from cvt_dense.checkpoints.families import FAMILIES
from cvt_dense.models.cvt.arch import ARCHS, get_arch
from cvt_dense.models.cvt.position import ConvPosition
from cvt_dense.models.layout import Layout
from cvt_dense.models.trunk import Place

OPTIONS = [
    dict(projection='linear'),
    dict(projection=['linear', 'conv', ['conv'] * (TINY['depths'][2] - 1) + ['linear']]),
    dict(patch_embed='patch'),
    dict(position='learned', pretrain_size=64),
    dict(position=['learned', 'none', 'learned'], pretrain_size=(48, 96)),
    dict(position='learned', pretrain_size=52),  # of maps of 13, 7 and 4 tokens: rounded up on the way
    dict(stem_channels=6),
    dict(position='conv'),
    dict(patch_embed='patch', position=['learned', 'conv', 'none'], stem_channels=6, pretrain_size=52),
    dict(projection='linear', patch_embed='patch', position='learned', pretrain_size=64),
]
each_option = pytest.mark.parametrize('options', OPTIONS, ids=str)


def build(kind: type[nn.Module], options: dict[str, Any], **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = with_statistics(kind(TINY | options, **settings))
    for name, parameter in model.named_parameters():
        if 'pos_embed' in name:
            nn.init.normal_(parameter)
    return model


def close(x: torch.Tensor, y: torch.Tensor) -> bool:
    return bool((x - y).abs().max() <= 1e-5 * y.abs().max())


def test_the_published_variants_have_none_of_it() -> None:
    for arch in ARCHS.values():
        assert (arch.projection, arch.patch_embed, arch.position, arch.stem_channels) == ('conv', 'conv', 'none', None)
    plain, written = (
        CvTTrunk(TINY),
        CvTTrunk(TINY | dict(projection='conv', patch_embed=['conv'] * 3, position='none', stem_channels=None)),
    )
    assert list(plain.state_dict()) == list(written.state_dict())


def test_linear_projection_is_attention_of_all_tokens_as_in_vit() -> None:
    attention = build(CvTTrunk, dict(projection='linear')).eval().stages[0].blocks[0].attn
    tokens = torch.randn(2, 5 * 7, TINY['embed_dims'][0])
    found = attention(tokens, Layout([2], [(5, 7)]))
    query, key, value = (
        linear(tokens).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for linear in (attention.proj_q, attention.proj_k, attention.proj_v)
    )
    weights = (attention.scale * query @ key.transpose(2, 3)).softmax(-1)
    assert close(found, attention.proj((weights @ value).transpose(1, 2).flatten(2)))
    assert not any('conv_proj' in name for name, _ in attention.named_parameters())


def test_patches_do_not_overlap_and_cut_off_what_is_left() -> None:
    model = build(CvTTrunk, dict(patch_embed='patch')).eval()
    with torch.no_grad():
        maps, _ = model(torch.randn(1, 3, 75, 101))
    assert [tuple(x.shape[2:]) for x in maps] == [(18, 25), (9, 12), (4, 6)]
    assert [stage.patch_embed.proj.kernel_size for stage in model.stages] == [(4, 4), (2, 2), (2, 2)]
    deep = dict(embed_dims=[8] * 4, num_heads=[1] * 4, depths=[1] * 4)
    assert (get_arch(deep).min_size, get_arch(deep | dict(patch_embed='patch')).min_size) == (16, 32)
    with torch.no_grad():
        assert CvTTrunk(deep | dict(patch_embed='patch')).eval()(torch.randn(1, 3, 32, 32))[0][-1].shape[2:] == (1, 1)


def test_positions_are_added_to_tokens_and_interpolated_at_other_sizes() -> None:
    model = build(CvTTrunk, dict(position=['learned', 'none', 'none'], pretrain_size=(48, 96)), num_stages=1).eval()
    stage = model.stages[0]
    assert stage.pos_embed.weight.shape == (1, TINY['embed_dims'][0], 12, 24)
    tokens = torch.randn(2, 12 * 24, TINY['embed_dims'][0])
    same = stage.pos_embed(tokens, (12, 24))
    assert torch.equal(same, tokens + stage.pos_embed.weight.flatten(2).transpose(1, 2))
    tokens = tokens[:, : 9 * 11]
    resized = F.interpolate(stage.pos_embed.weight, (9, 11), mode='bicubic')
    assert torch.equal(stage.pos_embed(tokens, (9, 11)), tokens + resized.flatten(2).transpose(1, 2))


def test_a_position_by_convolution_is_added_to_tokens() -> None:
    position = ConvPosition(6)
    tokens = torch.randn(2, 5 * 7, 6)
    x = tokens.transpose(1, 2).unflatten(2, (5, 7))
    assert close(position(tokens, (5, 7)), (x + position.conv(x)).flatten(2).transpose(1, 2))


def test_a_stem_halves_images_and_the_first_embedding_does_so_again() -> None:
    model = build(CvTTrunk, dict(stem_channels=6)).eval()
    stage = model.stages[0]
    x = torch.randn(1, 3, 75, 102)
    with torch.no_grad():
        maps, _ = model(x)
        assert [tuple(y.shape[2:]) for y in maps] == [(19, 26), (10, 13), (5, 7)] == model.map_sizes(x)
        halved = torch.cat(stage.stem([x]))
        assert halved.shape == (1, 6, 38, 51)
    assert (stage.patch_embed.proj.kernel_size, stage.patch_embed.proj.stride) == ((3, 3), (2, 2))
    parts = [name for name, _ in model.named_parameters() if 'stem' in name]
    assert {model.place_of(name) for name in parts} == {Place(0, None)}
    assert len(parts) == 12


@pytest.mark.parametrize('options', [dict(stem_channels=6), dict(position='conv')], ids=str)
def test_a_frozen_stage_is_frozen_with_what_is_before_its_blocks(options: dict[str, Any]) -> None:
    model = build(CvT, options, norm_eval=False, frozen_stages=0).train()
    assert not any(p.requires_grad for p in model.stage0.parameters())
    assert not any(module.training for module in model.stage0.modules() if isinstance(module, nn.BatchNorm2d))
    assert all(p.requires_grad for p in model.stage1.parameters())


@each_option
def test_each_parameter_learns_at_any_size(options: dict[str, Any]) -> None:
    model = build(CvT, options, norm_eval=False).train()
    sum(x.square().mean() for x in model(torch.randn(2, 3, 61, 90))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@each_option
@pytest.mark.parametrize('window_size', [None, 5])
def test_each_image_of_a_batch_gives_what_it_gives_alone(options: dict[str, Any], window_size: int | None) -> None:
    sizes = [(64, 96), (40, 50), (33, 95)]
    model, batch = build(CvT, options, window_size=window_size).eval(), torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        found = model(batch, image_sizes=sizes)
        for place, (height, width) in enumerate(sizes):
            for x, alone in zip(found, model(batch[place : place + 1, :, :height, :width])):
                assert close(x[place : place + 1, :, : alone.shape[2], : alone.shape[3]], alone)


@each_option
def test_windows_that_cover_the_map_are_global_attention(options: dict[str, Any]) -> None:
    x = torch.randn(1, 3, 61, 90)
    with torch.no_grad():
        for found, expected in zip(build(CvT, options, window_size=99).eval()(x), build(CvT, options).eval()(x)):
            assert close(found, expected)


@each_option
def test_graphs_are_for_any_size(options: dict[str, Any]) -> None:
    model, classifier = build(CvT, options).eval(), build(CvTClassifier, options, num_classes=5).eval()
    graphs = [torch.fx.symbolic_trace(model)]
    if options == OPTIONS[-1]:  # has all of them, and compiling takes long
        graphs.append(torch.compile(model, dynamic=True, fullgraph=True, backend='eager'))
    with torch.no_grad():
        for size in ((64, 96), (75, 131)):
            x = torch.randn(1, 3, *size)
            for graph in graphs:
                for found, expected in zip(graph(x), model(x), strict=True):
                    assert close(found, expected) or (found - expected).abs().max() < 1e-4
            assert close(torch.jit.script(classifier)(x), classifier(x))


@pytest.mark.slow
def test_a_file_is_for_any_size(tmp_path: Path) -> None:
    export(Exportable(build(CvT, OPTIONS[-1], out_indices=(0, 1))).eval(), tmp_path / 'model.onnx')  # which compares
    assert (tmp_path / 'model.onnx').is_file()


@each_option
def test_an_architecture_is_told_from_its_tensors(options: dict[str, Any]) -> None:
    arch = dict(embed_dims=(64, 192, 384), num_heads=(1, 3, 6), depths=(1, 2, 10))  # of CvT-13, but for the options
    if isinstance(options.get('projection'), list):
        options = dict(projection=['linear', 'conv', 'conv'])
    with torch.device('meta'):
        trunk = CvTTrunk(arch | options)
    tensors = dict(trunk.state_dict())
    family = FAMILIES['CvT']
    assert family.variant_of(tensors) is None
    assert family.departures_of(tensors) == [name for name in options if name != 'pretrain_size']
    told = family.arch_of(tensors, list(arch['embed_dims']), list(arch['depths']))
    with torch.device('meta'):
        again = CvTTrunk(told).state_dict()
    assert {name: x.shape for name, x in again.items()} == {name: x.shape for name, x in tensors.items()}


@each_option
def test_learned_positions_are_not_decayed(options: dict[str, Any]) -> None:
    model = build(CvTClassifier, options)
    spared = model.no_weight_decay()
    weights = {name for name, _ in model.named_parameters() if name.endswith('pos_embed.weight')}
    assert weights == {name for name in spared if 'pos_' in name}
    assert 'stages.2.cls_token' in spared


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(projection='avg'), r"projection must be one of \('conv', 'linear'\), or hold one per stage, got 'avg'"),
        (dict(projection=1), r'projection must be one of'),
        (dict(projection=['conv', 'linear']), 'projection has 2 values for 3 stages'),
        (dict(patch_embed='overlapping'), r"patch_embed must be one of \('conv', 'patch'\)"),
        (dict(patch_embed=['conv', 'patch', None]), 'patch_embed must be one of'),
        (dict(position='sincos'), r"position must be one of \('none', 'learned', 'conv'\)"),
        (dict(position=None), r'position must be one of'),
        (dict(stem_channels=0), 'stem_channels must be'),
        (dict(stem_channels=8.5), 'stem_channels must be'),
        (dict(position='learned', pretrain_size=8), 'pretrain_size must be the side of an image, .* at least 16'),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CvT(TINY | options)
