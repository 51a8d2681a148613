"""CvT in timm: it computes what the reference does, and has what is its own. The rest: test_timm_families.py."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from golden import DATA, TINY, Classifier, image, weights
from timm.data import create_transform, resolve_data_config
from timm.models import group_parameters, model_entrypoint
from timm.optim import param_groups_weight_decay
from torch import nn

from cvt_dense import CheckpointError
from cvt_dense.backbones import timm as adapter
from cvt_dense.backbones.timm import CvTClassifier
from cvt_dense.checkpoints import PUBLISHED
from cvt_dense.checkpoints.formats import to_timm, to_transformers

NAMES = ('cvt_13', 'cvt_21', 'cvt_w24')
SIZE = (2, 3, 65, 98)


def create(**settings: Any) -> nn.Module:
    """A small CvT, by timm's factory."""
    torch.manual_seed(0)
    return timm.create_model('cvt_13', **(dict(arch=TINY, num_classes=10) | settings))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_local_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('CVT_DENSE_CHECKPOINTS', raising=False)


def test_what_was_published_is_listed() -> None:
    assert set(timm.list_models('cvt_*')) == set(NAMES)
    expected = {f'{p.arch.replace("-", "_")}.{p.timm_tag}' for p in PUBLISHED.values() if p.repo}
    assert set(timm.list_pretrained('cvt_*')) == expected
    assert len(expected) == 7


def test_each_variant_has_a_function_like_one_written_by_hand() -> None:
    for name in NAMES:
        function = getattr(adapter, name)
        assert function is model_entrypoint(name)
        assert (function.__module__, function.__name__) == ('cvt_dense.backbones.timm', name)
        assert pickle.loads(pickle.dumps(function)) is function
        assert name in adapter.__all__
    assert adapter.cvt_13.__doc__ == 'CvT-13: 1/2/10 blocks of 64/192/384 channels.'
    assert adapter.cvt_w24.__doc__ == 'CvT-W24: 2/2/20 blocks of 192/768/1024 channels.'
    assert set(timm.list_models(module='timm')) >= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_logits_and_feature_maps_are_the_references(name: str) -> None:
    golden = np.load(DATA / f'{name}.npz')
    with torch.device('meta'):
        names = Classifier(name.replace('_', '-'), 1000)
    reference = dict(state_dict=weights(names))
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=reference).eval()
    assert sum(p.numel() for p in model.parameters()) == int(golden['num_params'])
    for size in sorted({key.split('.')[0] for key in golden.files if 'x' in key}):
        height, width = map(int, size.split('x'))
        images = image(height, width, batch=1)
        with torch.no_grad():
            logits = model(images).reshape(-1)[::10]
            maps = model.forward_intermediates(images, intermediates_only=True)
        for ours, key in zip((logits, *(x[0, ::8, ::5, ::5] for x in maps)), ('logits', 'stage0', 'stage1', 'stage2')):
            theirs = golden[f'{size}.{key}']
            assert np.abs(ours.numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max(), (size, key)


@pytest.mark.parametrize('name', timm.list_pretrained('cvt_*'))
def test_the_description_fits_the_model(name: str) -> None:
    with torch.device('meta'):
        model = timm.create_model(name)
    cfg = model.pretrained_cfg
    assert cfg['hf_hub_id'] in {entry.repo for entry in PUBLISHED.values()}
    assert {f'{cfg["first_conv"]}.weight', f'{cfg["classifier"]}.weight'} <= model.state_dict().keys()
    assert model.in_chans == cfg['input_size'][0]
    features = model.forward_features(torch.empty(1, *cfg['input_size'], device='meta'))
    assert features.shape == (1, 1 + np.prod(cfg['pool_size']), model.num_features)
    transform = create_transform(**resolve_data_config(model=model))
    assert transform.transforms[-1].mean.shape == (3,)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(TypeError, match='not_a_model_arg'):
        create(not_a_model_arg=1)
    with pytest.raises(AssertionError, match='global_pool must be one of'):
        create(global_pool='catavgmax')
    with pytest.raises(ValueError, match='unknown arch'):
        create(arch='cvt-99')


@pytest.mark.parametrize(('pool', 'shape'), [('token', (2, 96)), ('avg', (2, 96)), ('max', (2, 96)), ('', (2, 25, 96))])
def test_without_a_classifier_the_pooled_features_come_out(x: torch.Tensor, pool: str, shape: tuple[int, ...]) -> None:
    model = create().eval()
    with torch.no_grad():
        model.reset_classifier(0, pool)
        assert model.num_classes == 0
        pooled = model(x)
        assert pooled.shape == shape
        torch.testing.assert_close(pooled, model.forward_head(model.forward_features(x), pre_logits=True))
        fresh = create(num_classes=0, global_pool=pool).eval()
        assert fresh(x).shape == shape
        # A new head keeps the pooling.
        model.reset_classifier(7)
        assert model(x).shape == (*shape[:-1], 7)


def test_average_pooling_leaves_the_cls_token_out(x: torch.Tensor) -> None:
    model = create(num_classes=0, global_pool='avg').eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.forward_features(x)[:, 1:].mean(1))


def test_the_final_norm_goes_on_the_last_map_if_asked_for(x: torch.Tensor) -> None:
    model = create().eval()
    with torch.no_grad():
        raw = model.forward_intermediates(x, intermediates_only=True)
        normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
        assert torch.equal(raw[1], normed[1])
        torch.testing.assert_close(normed[2], model.norm(raw[2].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize('index', [0, 1, 2])
@pytest.mark.parametrize('prune_norm', [True, False])
def test_pruned_models_give_the_same_maps(x: torch.Tensor, index: int, prune_norm: bool) -> None:
    model = create().eval()
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([index], prune_norm=prune_norm) == [index]
    with torch.no_grad():
        (expected,) = model.forward_intermediates(x, [index], intermediates_only=True)
        (ours,) = pruned.forward_intermediates(x, [index], intermediates_only=True)
        assert torch.equal(ours, expected)
        pruned.reset_classifier(4, 'avg')
        assert pruned(x).shape == (2, 4)
    assert pruned.num_features == model.feature_info[index]['num_chs']
    if index < 2:
        with pytest.raises(AssertionError, match='the cls token went with the last stage'):
            pruned.reset_classifier(4, 'token')


def test_groups_follow_the_depth() -> None:
    model = create()
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    order = [
        'stages.0.patch_embed.proj.weight',
        'stages.0.blocks.0.norm1.weight',
        'stages.1.patch_embed.norm.bias',
        'stages.1.blocks.0.mlp.fc1.weight',
        'stages.1.blocks.1.mlp.fc1.weight',
        'stages.2.cls_token',
        'stages.2.blocks.1.attn.proj.weight',
    ]
    depths = [groups[name] for name in order]
    assert depths == sorted(set(depths))
    assert groups['norm.weight'] == depths[-1]
    assert groups['head.weight'] == depths[-1] + 1
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len(set(coarse.values())) == 5  # stem, three stages, what follows


def test_the_cls_token_is_not_decayed() -> None:
    model = create()
    assert model.no_weight_decay() == {'stages.2.cls_token'}
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    (undecayed,) = (group for group in groups if group['weight_decay'] == 0)
    assert any(parameter is model.stages[2].cls_token for parameter in undecayed['params'])


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the authors' file of cvt_13.msft_in22k_ft_in1k_384."""
    path = tmp_path_factory.mktemp('checkpoints')
    torch.save(weights(Classifier('cvt-13', 1000)), path / 'CvT-13-384x384-IN-22k.pth')
    return path


def test_a_local_folder_is_looked_through_before_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CVT_DENSE_CHECKPOINTS', str(folder))
    saved = to_timm(torch.load(folder / 'CvT-13-384x384-IN-22k.pth'))
    tag = 'cvt_13.msft_in22k_ft_in1k_384'
    model = timm.create_model(tag, pretrained=True)
    assert all(torch.equal(tensor, saved[key]) for key, tensor in model.state_dict().items())
    other = timm.create_model(tag, pretrained=True, in_chans=1, num_classes=5)
    stem = 'stages.0.patch_embed.proj.weight'
    torch.testing.assert_close(other.state_dict()[stem], saved[stem].sum(1, keepdim=True))
    assert other.head.out_features == 5
    features = timm.create_model(tag, pretrained=True, features_only=True, out_indices=(0,))
    assert torch.equal(features.model.state_dict()[stem], saved[stem])


def test_published_weights_are_taken_as_the_hub_has_them(tmp_path: Path) -> None:
    saved = weights(Classifier('cvt-13', 1000))
    repo = tmp_path / 'hub' / 'models--microsoft--cvt-13'
    revision = 'a' * 40
    for file in (repo / 'refs' / 'main', repo / 'snapshots' / revision / 'pytorch_model.bin'):
        file.parent.mkdir(parents=True)
    (repo / 'refs' / 'main').write_text(revision)
    torch.save(to_transformers(saved), repo / 'snapshots' / revision / 'pytorch_model.bin')
    code = """
import cvt_dense, timm
print(timm.create_model('cvt_13', pretrained=True).head.weight.double().sum().item())
"""
    env = os.environ | dict(HF_HOME=str(tmp_path), HF_HUB_OFFLINE='1')
    result = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True)
    assert float(result.stdout.splitlines()[-1]) == pytest.approx(saved['head.weight'].double().sum().item())


@pytest.mark.parametrize('convert', [dict, to_timm, to_transformers])
def test_weights_of_every_format_load(convert: Any) -> None:
    state_dict = weights(Classifier(TINY, 10))
    model = create(pretrained=True, pretrained_cfg_overlay=dict(state_dict=convert(state_dict), num_classes=10))
    assert all(torch.equal(tensor, to_timm(state_dict)[key]) for key, tensor in model.state_dict().items())


def test_weights_that_do_not_fit_are_refused() -> None:
    def refusal(state_dict: dict[str, torch.Tensor], name: str, **settings: Any) -> str:
        overlay = dict(state_dict=state_dict)
        with pytest.raises(CheckpointError) as error:
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
        assert '\n' not in str(error.value)
        return str(error.value)

    with torch.device('meta'):
        small = Classifier('cvt-13', 1000)
    small_weights = weights(small)
    message = refusal(small_weights, 'cvt_21')
    assert "cvt_21.msft_in1k does not fit the model (these are cvt-13's; the config asks for cvt-21)" in message
    del small_weights['stage0.patch_embed.proj.weight']
    assert '1 missing (stage0.patch_embed.proj.weight)' in refusal(small_weights, 'cvt_13', in_chans=1)
    assert 'holds no CvT weights' in refusal({'layer1.0.conv1.weight': torch.zeros(1)}, 'cvt_13')


def test_the_class_can_be_used_without_the_factory(x: torch.Tensor) -> None:
    assert CvTClassifier(TINY, num_classes=3)(x).shape == (2, 3)
