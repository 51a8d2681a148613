"""Packages that take models of timm take these: docs/integrations.md, as far as what it names is installed here.

The others are in clients/, for an environment of their own.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import transformers
from documents import run_block
from paths import ROOT
from timm.utils.model import freeze_batch_norm_2d
from tiny_timm import CHANNELS, each_model
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d
from transformers import TimmBackboneConfig, TimmWrapperConfig

PAGE = ROOT / 'docs' / 'integrations.md'
CLIENTS = sorted((ROOT / 'tests' / 'clients').glob('test_*.py'))
#: By class of the detector: its settings beside those of the backbone and of its size.
DETECTORS: dict[str, dict[str, Any]] = {
    'Detr': dict(),
    'ConditionalDetr': dict(),
    'DeformableDetr': dict(num_feature_levels=3),
    'RTDetr': dict(encoder_hidden_dim=32),
    'RTDetrV2': dict(encoder_hidden_dim=32),
    'DFine': dict(encoder_hidden_dim=32),
}


def detector(kind: str, name: str) -> nn.Module:
    channels, strides = CHANNELS[name][-3:], [4, 8, 16] if len(CHANNELS[name]) == 3 else [8, 16, 32]
    indices = range(len(CHANNELS[name]))[-3:]
    settings = dict(
        backbone_config=TimmBackboneConfig(backbone=name, out_indices=list(indices)),
        d_model=32,
        num_queries=5,
        num_labels=3,
        **{f'{part}_{setting}': 2 for part in ('encoder', 'decoder') for setting in ('layers', 'attention_heads')},
        **{f'{part}_ffn_dim': 32 for part in ('encoder', 'decoder')},
    )
    if 'encoder_hidden_dim' in DETECTORS[kind]:
        settings |= dict(encoder_in_channels=list(channels), feat_strides=strides, decoder_in_channels=[32] * 3)
    config = getattr(transformers, f'{kind}Config')(**(settings | DETECTORS[kind]))
    return getattr(transformers, f'{kind}ForObjectDetection')(config)


@pytest.mark.parametrize(('kind', 'name'), [*((kind, 'small_cvt') for kind in DETECTORS), ('Detr', 'small_cmt')])
def test_a_detector_of_transformers_trains_and_evaluates(kind: str, name: str) -> None:
    model = detector(kind, name)
    frozen = [module for module in model.modules() if 'FrozenBatchNorm' in type(module).__name__]
    assert frozen, 'it replaces each BatchNorm by one of its own, which is what has broken here'
    images = torch.randn(2, 3, 64, 96)
    labels = [dict(class_labels=torch.tensor([1]), boxes=torch.tensor([[0.5, 0.5, 0.3, 0.3]]))] * 2
    model.train()(pixel_values=images, labels=labels).loss.backward()
    stem = next(parameter for parameter in model.model.backbone.parameters() if parameter.ndim == 4)
    assert stem.grad is not None
    assert stem.grad.isfinite().all()
    model.eval()
    with torch.no_grad():
        expected = model(pixel_values=images).logits
        assert expected.isfinite().all()
        with torch.autocast('cpu', torch.bfloat16):
            assert model(pixel_values=images).logits.shape == expected.shape


@each_model
def test_the_backbone_of_transformers_gives_timms_maps(name: str) -> None:
    indices = list(range(len(CHANNELS[name]) + 1))
    model = transformers.TimmBackbone(TimmBackboneConfig(backbone=name, out_indices=indices)).eval()
    images = torch.randn(1, 3, 65, 96)
    with torch.no_grad():
        maps = model(images).feature_maps
        assert all(torch.equal(a, b) for a, b in zip(maps, model._backbone(images)))
    assert [m.shape[1] for m in maps] == [*CHANNELS[name], CHANNELS[name][-1]] == list(model.channels)


@each_model
def test_a_detector_of_transformers_takes_weights_as_the_page_says(name: str) -> None:
    model = run_block('integrations', 'transformers', {'cvt_13': name})['model'].eval()
    trained = timm.create_model(name, features_only=True, out_indices=(0, 1, 2))
    trained(torch.randn(2, 3, 64, 96))  # after which its BatchNorm has statistics of its own
    images = torch.randn(1, 3, 65, 96)
    with torch.no_grad():
        expected = trained.eval()(images)
        backbone = model.model.backbone.model
        backbone.load_state_dict(trained.state_dict())
        for ours, theirs in zip(backbone(images), expected):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@each_model
def test_a_classifier_of_transformers_saves_and_loads(name: str, tmp_path: Any) -> None:
    config = TimmWrapperConfig(architecture=name, num_labels=3)
    model = transformers.TimmWrapperForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model(pixel_values=images).logits
        assert logits.shape == (2, 3)
        assert torch.equal(loaded(pixel_values=images).logits, logits)
    model.train()(pixel_values=images, labels=torch.tensor([0, 2])).loss.backward()


@each_model
def test_the_blocks_of_the_page_run(name: str) -> None:
    timms = run_block('integrations', 'timm', {'cvt_13': name})
    assert timms['features'].feature_info.reduction() == [4, 8, 16, 32]
    torchvisions = run_block('integrations', 'torchvision', {'cvt_13': name})
    sum(torchvisions['losses'].values()).backward()
    model = torchvisions['model']
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    for settings in (dict(enabled=False), dict(dtype=torch.bfloat16)):
        with torch.no_grad(), torch.autocast('cpu', **settings):
            (found,) = model.eval()([torch.rand(3, 75, 91)])
        assert found['boxes'].shape[1] == 4


def test_the_page_has_a_block_each() -> None:
    tested = {'timm', 'transformers', 'torchvision'} | {path.stem.removeprefix('test_') for path in CLIENTS}
    titles = re.findall(r'^## (.+)\n(?:(?!^## |^```python).*\n)*^```python$', PAGE.read_text(), re.MULTILINE)
    assert {title.replace('-', '_') for title in titles} == tested


@each_model
@pytest.mark.parametrize('features_only', [False, True])
def test_torch_fx_traces_without_being_told_how(name: str, features_only: bool) -> None:
    model = timm.create_model(name, features_only=features_only).eval()
    traced = torch.fx.symbolic_trace(model)
    for size in ((1, 3, 64, 96), (2, 3, 75, 49)):
        images = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(traced(images), model(images), atol=1e-5, rtol=1e-4)


@each_model
def test_torchvision_extracts_features_without_being_told_how(name: str) -> None:
    model = timm.create_model(name)
    extractor = create_feature_extractor(model, {'stages.1.blocks.0.mlp': 'x', 'head': 'logits'})
    images = torch.randn(2, 3, 75, 96)
    for training in (True, False):
        features = extractor.train(training)(images)
        assert features['logits'].shape == (2, 1000)
        assert CHANNELS[name][1] in features['x'].shape
    with torch.no_grad():
        assert torch.equal(features['logits'], extractor(images)['logits'])
        torch.testing.assert_close(features['logits'], model.eval()(images), atol=1e-5, rtol=1e-4)


@each_model
def test_norms_that_timm_froze_give_the_same(name: str) -> None:
    model = timm.create_model(name, features_only=True).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        frozen = freeze_batch_norm_2d(model)
        assert {type(module) for module in frozen.modules() if hasattr(module, 'running_var')} == {FrozenBatchNorm2d}
        torch.testing.assert_close(frozen.train()(images), expected, atol=1e-5, rtol=1e-4)
    assert any(
        isinstance(module, FrozenBatchNorm2d) or 'Frozen' in type(module).__name__ for module in frozen.modules()
    )
