"""What timm's own model tests check of a model, on those of each family."""

from __future__ import annotations

import copy
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from families import Family, each_family
from golden import CMTClassifier, image, weights
from timm.data import create_transform, resolve_data_config
from timm.models import get_notrace_functions, get_notrace_modules, model_entrypoint
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from cvt_dense import CheckpointError
from cvt_dense.backbones import timm as of_cvt
from cvt_dense.backbones import timm_cmt as of_cmt
from cvt_dense.checkpoints import PUBLISHED
from cvt_dense.checkpoints.families import FAMILIES

MODULES = {'CvT': of_cvt, 'CMT': of_cmt}
VARIANT = {'CvT': 'cvt_13', 'CMT': 'cmt_ti'}
SIZE = (2, 3, 65, 98)


def create(family: Family, **settings: Any) -> nn.Module:
    """A small model, by timm's factory."""
    torch.manual_seed(0)
    return timm.create_model(VARIANT[family.name], **(dict(arch=family.tiny, num_classes=10) | settings))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1))


@each_family
def test_what_was_published_is_listed_and_described(family: Family) -> None:
    variants = {name.replace('-', '_') for name in FAMILIES[family.name].variants}
    pattern = f'{family.name.lower()}_*'
    assert set(timm.list_models(pattern)) == variants
    published = {f'{p.arch.replace("-", "_")}.{p.timm_tag}': p for p in PUBLISHED.values()}
    assert set(timm.list_pretrained(pattern)) == {name for name in published if name.split('.')[0] in variants}
    for name in timm.list_pretrained(pattern):
        with torch.device('meta'):
            model = timm.create_model(name)
        cfg = model.pretrained_cfg
        assert cfg.get('hf_hub_id') == published[name].repo
        assert cfg.get('url') == published[name].url
        assert cfg['input_size'] == (3, published[name].resolution, published[name].resolution)
        assert {f'{cfg["first_conv"]}.weight', f'{cfg["classifier"]}.weight'} <= model.state_dict().keys()
        transform = create_transform(**resolve_data_config(model=model))
        assert transform.transforms[-1].mean.shape == (3,)


@each_family
def test_each_variant_has_a_function_like_one_written_by_hand(family: Family) -> None:
    module = MODULES[family.name]
    for name in timm.list_models(f'{family.name.lower()}_*'):
        function = getattr(module, name)
        assert function is model_entrypoint(name)
        assert (function.__module__, function.__name__) == (module.__name__, name)
        assert pickle.loads(pickle.dumps(function)) is function
        assert name in module.__all__


def test_logits_of_cmt_are_the_references() -> None:
    golden = np.load(f'{__file__.partition("backbones")[0]}data/cmt/cmt_ti.npz')
    with torch.device('meta'):
        names = CMTClassifier('cmt-ti', 1280, 1000)
    wrapped = dict(model=weights(names))
    for size in (160, 224):
        settings = dict(img_size=size) if size == 224 else {}
        if size == 224:
            with torch.device('meta'):
                names = CMTClassifier('cmt-ti', 1280, 1000, pretrain_size=size)
            wrapped = dict(model=weights(names))
        overlay = dict(state_dict=wrapped)
        model = timm.create_model('cmt_ti', pretrained=True, pretrained_cfg_overlay=overlay, **settings).eval()
        assert sum(p.numel() for p in model.parameters()) == int(golden[f'{size}x{size}.num_params'])
        with torch.no_grad():
            logits = model(image(size, size, 1)).reshape(-1)[::10].numpy()
        expected = golden[f'{size}x{size}.logits']
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_files_of_cmt_are_taken_from_a_local_folder_as_the_authors_wrap_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device('meta'):
        names = CMTClassifier('cmt-ti', 1280, 1000)
    saved = weights(names)
    torch.save(dict(model=saved, args=Namespace(lr=0.1)), tmp_path / 'cmt_tiny.pth')
    monkeypatch.setenv('CVT_DENSE_CHECKPOINTS', str(tmp_path))
    model = timm.create_model('cmt_ti', pretrained=True, in_chans=1, num_classes=5)
    stem = model.state_dict()['stages.0.stem.conv1.weight']
    torch.testing.assert_close(stem, saved['stem_conv1.weight'].sum(1, keepdim=True))
    assert torch.equal(model.conv_head.weight, saved['_fc.weight'])
    assert model.head.out_features == 5
    features = timm.create_model('cmt_ti.huawei_in1k', pretrained=True, features_only=True, out_indices=(0,))
    assert torch.equal(features.model.stages[0].relative_pos, saved['relative_pos_a'])


def test_tables_of_cmt_are_brought_to_the_size_that_is_asked_for_and_not_decayed() -> None:
    with torch.device('meta'):
        names = CMTClassifier('cmt-ti', 1280, 1000)
    overlay = dict(state_dict=weights(names))
    model = timm.create_model('cmt_ti', pretrained=True, img_size=192, pretrained_cfg_overlay=overlay)
    assert model.stages[0].relative_pos.shape == (1, 48 * 48, 36)
    assert model.no_weight_decay() == {f'stages.{index}.relative_pos' for index in range(4)}


def test_a_file_without_the_convolution_in_front_of_the_head_is_for_feature_maps_alone() -> None:
    with torch.device('meta'):
        names = of_cmt.build_stages(of_cmt.ARCHS['cmt-ti'])
    tensors = {
        f'stages.{index}.{key}': torch.zeros(tensor.shape)
        for index, stage in enumerate(names)
        for key, tensor in stage.state_dict().items()
    }
    overlay = dict(state_dict=tensors)
    for settings in (dict(), dict(num_classes=0)):
        with pytest.raises(CheckpointError, match='features_only=True'):
            timm.create_model('cmt_ti', pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    timm.create_model('cmt_ti', pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)


@each_family
@pytest.mark.parametrize('features_only', [True, False])
def test_images_that_it_cannot_take_are_refused(family: Family, features_only: bool) -> None:
    model = create(family, features_only=features_only)
    for shape in ((1, 4, 32, 32), (3, 32, 32), (0, 3, 32, 32), (1, 3, family.min_size - 1, 64)):
        with pytest.raises(ValueError, match=f'{family.name} takes'):
            model(torch.zeros(shape))


@each_family
@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_parameters_are_made_where_they_are_asked_for(family: Family, device: str) -> None:
    model = create(family, device=device, dtype=torch.bfloat16)
    for tensor in (*model.parameters(), *model.buffers()):
        assert tensor.device.type == device
        assert tensor.dtype == (torch.bfloat16 if tensor.is_floating_point() else torch.long)


@each_family
def test_every_parameter_gets_a_gradient(family: Family, x: torch.Tensor) -> None:
    model = create(family).train()
    model(x).mean().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@each_family
def test_the_type_can_be_changed_after_a_forward_pass(family: Family, x: torch.Tensor) -> None:
    model = create(family).eval()
    with torch.no_grad():
        model(x)
        assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@each_family
def test_without_a_classifier_the_pooled_features_come_out(family: Family, x: torch.Tensor) -> None:
    model = create(family).eval()
    with torch.no_grad():
        pre_logits = model.forward_head(model.forward_features(x), pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
        model.reset_classifier(0)
        assert torch.equal(model(x), pre_logits)
        assert create(family, num_classes=0).eval()(x).shape == pre_logits.shape
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)
        model.reset_classifier(7, 'max')
        assert model(x).shape == (2, 7)
    with pytest.raises(AssertionError, match='global_pool must be one of'):
        model.reset_classifier(7, 'catavgmax')


@each_family
def test_a_new_head_is_where_the_model_is_and_frozen_stays_frozen(family: Family) -> None:
    model = create(family).to('meta', torch.float64).eval()
    model.requires_grad_(False)
    model.reset_classifier(0)
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.reset_classifier(2)
    (weight, bias) = model.get_classifier().parameters()
    assert (weight.device.type, weight.dtype, bias.dtype) == ('meta', torch.float64, torch.float64)
    assert not any(module.training for module in model.modules())


@each_family
@pytest.mark.parametrize('indices', [None, 1, [0, 2], [1]])
def test_intermediates_are_the_stages_maps(family: Family, x: torch.Tensor, indices: Any) -> None:
    model = create(family).eval()
    with torch.no_grad():
        expected, maps = [], [x]
        for stage in model.stages:
            tokens, layout = stage(maps)
            maps = stage.to_maps(tokens, layout)
            expected.extend(maps)
        final, intermediates = model.forward_intermediates(x, indices)
        every = list(range(family.num_stages))
        taken = {None: every, 1: every[-1:]}.get(indices if not isinstance(indices, list) else 0, indices)
        assert len(intermediates) == len(taken)
        for index, ours in zip(taken, intermediates):
            assert ours.is_contiguous()
            assert torch.equal(ours, expected[index])
            assert ours.shape[1] == model.feature_info[index]['num_chs']
        assert torch.equal(final, model.forward_features(x))
        stopped = model.forward_intermediates(x, indices, stop_early=True, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(stopped, intermediates))


@each_family
@pytest.mark.parametrize('out_indices', [(0, 1, 2), (0, 2), (1,), (-1,)])
def test_features_only_gives_maps_at_their_strides(
    family: Family, x: torch.Tensor, out_indices: tuple[int, ...]
) -> None:
    model = create(family, features_only=True, out_indices=out_indices).train()
    maps = model(x)
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    for m, reduction in zip(maps, model.feature_info.reduction()):
        assert m.is_contiguous()
        for side, of_image in zip(m.shape[2:], SIZE[2:]):
            assert of_image // reduction <= side <= of_image // reduction + 1
    # What the maps do not need is gone, so that no parameter goes without a gradient in distributed training.
    sum(m.sum() for m in maps).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@each_family
@pytest.mark.parametrize('index', [0, 1, -1])
@pytest.mark.parametrize('prune_norm', [True, False])
def test_pruned_models_give_the_same_maps_and_take_a_new_head(
    family: Family, x: torch.Tensor, index: int, prune_norm: bool
) -> None:
    model = create(family).eval()
    pruned = copy.deepcopy(model)
    index %= family.num_stages
    assert pruned.prune_intermediate_layers([index], prune_norm=prune_norm) == [index]
    with torch.no_grad():
        (expected,) = model.forward_intermediates(x, [index], intermediates_only=True)
        (ours,) = pruned.forward_intermediates(x, [index], intermediates_only=True)
        assert torch.equal(ours, expected)
        pruned.reset_classifier(4, 'avg')
        assert pruned(x).shape == (2, 4)
    assert pruned.num_features == model.feature_info[index]['num_chs']


@each_family
def test_a_pruned_head_can_be_kept(family: Family, x: torch.Tensor) -> None:
    model = create(family).eval()
    with torch.no_grad():
        expected = model(x)
        model.prune_intermediate_layers([family.num_stages - 1], prune_head=False)
        assert torch.equal(model(x), expected)


@each_family
@pytest.mark.parametrize('features_only', [True, False])
def test_gradient_checkpointing_changes_nothing_but_memory(
    family: Family, x: torch.Tensor, features_only: bool
) -> None:
    gradients = []
    for enable in (False, True):
        model = create(family, features_only=features_only).train()
        core = model.model if features_only else model
        core.set_grad_checkpointing(enable)
        assert all(stage.with_cp is enable for stage in core.stages)
        out = model(x)
        sum(m.pow(2).mean() for m in (out if features_only else [out])).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(checkpointed, plain)


@each_family
@pytest.mark.parametrize('window_size', [None, 'pretrain', 'mixed'])
def test_torchscript_computes_the_same(family: Family, x: torch.Tensor, window_size: Any) -> None:
    if window_size == 'mixed':
        window_size = [5, [3, None], *[2] * (family.num_stages - 2)]
    model = create(family, window_size=window_size).eval()
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for images in (x, torch.randn(1, 3, 42, 123)):
            torch.testing.assert_close(scripted(images), model(images))


@each_family
def test_fx_traces_the_model_and_torchscript_the_trace(family: Family, x: torch.Tensor) -> None:
    model = create(family).eval()
    settings = dict(
        leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions(), param_shapes_constant=True
    )
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=settings)
    traced = create_feature_extractor(
        model, train_return_nodes=train_nodes[-1:], eval_return_nodes=eval_nodes[-1:], tracer_kwargs=settings
    )
    with torch.no_grad():
        for graph in (traced, torch.jit.script(traced)):
            (ours,) = graph(x).values()
            torch.testing.assert_close(ours, model(x))
