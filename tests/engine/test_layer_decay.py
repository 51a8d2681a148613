from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import TINY
from mmengine.optim import build_optim_wrapper
from torch import nn

from cvt_dense import CvT
from cvt_dense.engine.layer_decay import LayerDecayOptimWrapperConstructor, ParamGroup


class Detector(nn.Module):
    """The least that has a backbone, fresh norms and a head."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.backbone = CvT(**settings)
        self.head = nn.Conv2d(4, 4, 1)


def groups_of(model: nn.Module, **paramwise_cfg: Any) -> list[ParamGroup]:
    cfg = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1))
    return LayerDecayOptimWrapperConstructor(cfg, paramwise_cfg).param_groups(model)


def group_with(groups: list[ParamGroup], name: str) -> ParamGroup:
    (group,) = [g for g in groups if name in g.names]
    return group


def test_the_groups_of_cvt_13() -> None:
    """13 blocks and 3 embeddings are 16 layers; the 17th is the head with the fresh norms."""
    model = Detector(arch='cvt-13')
    groups = groups_of(model, layer_decay_rate=0.5)
    expected = {
        'stage0.patch_embed.proj.weight': 0,
        'stage0.blocks.0.attn.proj_q.weight': 1,
        'stage1.patch_embed.proj.weight': 2,
        'stage1.blocks.0.mlp.fc1.weight': 3,
        'stage1.blocks.1.mlp.fc1.weight': 4,
        'stage2.patch_embed.proj.weight': 5,
        'stage2.cls_token': 5,
        'stage2.blocks.0.attn.conv_proj_k.conv.weight': 6,
        'stage2.blocks.9.mlp.fc2.weight': 15,
        'norm0.weight': 16,
        'norm2.bias': 16,
    }
    for name, depth in expected.items():
        group = group_with(groups, f'backbone.{name}')
        assert (group.depth, group.lr) == (depth, 0.5 ** (16 - depth)), name
    assert group_with(groups, 'head.weight').lr == 1.0
    # A decayed and an undecayed group for each layer.
    assert [(g.depth, g.weight_decay) for g in groups] == [(d, w) for d in range(17) for w in (0.1, 0.0)]
    assert [len(g.names) for g in groups if g.depth == 1] == [9, 16]
    assert [len(g.names) for g in groups if g.depth == 5] == [1, 4]
    assert sum(p.numel() for g in groups for p in g.params) == sum(p.numel() for p in model.parameters())


def test_norms_biases_and_the_cls_token_are_not_decayed_and_all_else_is() -> None:
    model = Detector(arch=TINY)
    norms = {id(p) for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d)) for p in m.parameters()}
    for group in groups_of(model, layer_decay_rate=0.9):
        for name, p in zip(group.names, group.params):
            exempt = id(p) in norms or name.endswith(('bias', 'cls_token'))
            assert group.weight_decay == (0.0 if exempt else 0.1), name


def test_positions_are_not_decayed_whether_a_parameter_as_in_mmpretrain_or_a_module() -> None:
    model = Detector(arch=TINY | dict(position='learned', pretrain_size=64))
    model.backbone.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
    model.backbone.get_layer_depth = lambda name, prefix='': (0, 2)
    groups = groups_of(model)
    for name in ('backbone.pos_embed', 'backbone.stage0.pos_embed.weight'):
        assert group_with(groups, name).weight_decay == 0.0


def test_custom_keys_multiply_and_leave_what_they_do_not_name() -> None:
    keys = {
        'backbone': dict(lr_mult=0.1),
        'backbone.stage1': dict(decay_mult=2.0),
        'head': dict(lr_mult=3.0, betas=(0, 0)),
    }
    groups = groups_of(Detector(arch=TINY), custom_keys=keys)

    def settings(name: str) -> tuple[float, float]:
        group = group_with(groups, name)
        return group.lr, group.weight_decay

    assert settings('backbone.stage0.blocks.0.mlp.fc1.weight') == (0.1, 0.1)
    assert settings('backbone.stage0.blocks.0.norm1.weight') == (0.1, 0.0)
    assert settings('backbone.stage1.blocks.0.mlp.fc1.weight') == (0.1, 0.2)
    assert settings('backbone.stage2.cls_token') == (0.1, 0.0)
    assert settings('head.weight') == (3.0, 0.1)
    assert group_with(groups, 'head.bias').extras == dict(betas=(0, 0))


def test_frozen_parameters_are_left_out_and_all_others_are_in_once() -> None:
    model = Detector(arch=TINY, frozen_stages=0)
    names = [name for group in groups_of(model, layer_decay_rate=0.7) for name in group.names]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert not any(name.startswith('backbone.stage0') for name in names)


def test_fewer_stages_are_fewer_layers() -> None:
    assert CvT(TINY, out_indices=(1,)).get_layer_depth('stage1.blocks.1.norm1.weight') == (4, 6)
    assert CvT(TINY, out_indices=(1,)).get_layer_depth('norm1.weight') == (5, 6)
    assert CvT(TINY).get_layer_depth('neck.stage0.weight', prefix='backbone.') == (8, 9)


def test_a_wrapper_is_built_from_a_config_and_the_groups_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr('cvt_dense.engine.layer_decay.print_log', lambda text, logger: printed.append(text))
    model = Detector(arch=TINY)
    cfg = dict(
        type='OptimWrapper',
        constructor='LayerDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        paramwise_cfg=dict(layer_decay_rate=0.7),
        clip_grad=dict(max_norm=1.0),
    )
    wrapper = build_optim_wrapper(model, cfg)
    assert wrapper.clip_grad_kwargs == dict(max_norm=1.0)
    assert [group['lr'] for group in wrapper.param_groups] == sorted(group['lr'] for group in wrapper.param_groups)
    assert wrapper.param_groups[-1]['lr'] == 1e-3
    before = model.head.weight.clone()
    wrapper.update_params(sum(x.mean() for x in model.backbone(torch.randn(1, 3, 32, 32))) + model.head.weight.sum())
    assert not torch.equal(model.head.weight, before)
    (table,) = printed
    assert table.startswith('Parameter groups:')
    assert 'backbone.stage0.patch_embed.proj.weight' in table


@pytest.mark.parametrize(
    ('paramwise_cfg', 'message'),
    [
        (dict(layer_decay=0.7), "unknown key 'layer_decay'; it takes bias_decay_mult, custom_keys, layer_decay_rate"),
        (dict(layer_decay_rate=0), r'layer_decay_rate must lie in \(0, 1\], got 0'),
        (dict(layer_decay_rate=1.5), 'got 1.5'),
        (dict(layer_decay_rate='0.7'), "got '0.7'"),
    ],
)
def test_wrong_settings_are_named(paramwise_cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups_of(Detector(arch=TINY), **paramwise_cfg)


def test_what_layer_decay_needs_is_named() -> None:
    with pytest.raises(ValueError, match='needs an lr'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='AdamW')))
    with pytest.raises(ValueError, match='needs a backbone with get_layer_depth, such as CvT, and NoneType has none'):
        groups_of(nn.Linear(2, 2))
