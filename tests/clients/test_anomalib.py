"""anomalib's extractor of features, in the models that fit statistics and in one that trains."""

from __future__ import annotations

import pytest
import torch
from anomalib.models import Patchcore
from anomalib.models.components.feature_extractors import TimmFeatureExtractor
from documents import run_block
from tiny_timm import CHANNELS, each_model

LAYERS = ['stages.0', 'stages.1']


@each_model
def test_the_block_of_the_page_runs(name: str) -> None:
    model = run_block('integrations', 'anomalib', {'cvt_13': name, 'n_features=100': 'n_features=10'})['model'].model
    embedding = model.train()(torch.rand(12, 3, 64, 64))
    assert embedding.shape[1] == 10
    model.fit()
    found = model.eval()(torch.rand(2, 3, 64, 64))
    assert found.anomaly_map.shape == (2, 1, 64, 64)
    assert found.anomaly_map.isfinite().all()


def test_a_bank_of_patches() -> None:
    model = Patchcore(backbone='small_cvt', layers=LAYERS, pre_trained=False).model
    model.train()(torch.rand(4, 3, 64, 64))
    model.subsample_embedding(0.1)
    assert model.eval()(torch.rand(1, 3, 64, 64)).anomaly_map.shape == (1, 1, 64, 64)


@each_model
@pytest.mark.parametrize('requires_grad', [False, True])
def test_features_by_the_names_of_layers(name: str, requires_grad: bool) -> None:
    layers = [f'stages.{stage}' for stage in range(len(CHANNELS[name]))]
    extractor = TimmFeatureExtractor(name, layers, pre_trained=False, requires_grad=requires_grad).train()
    maps = extractor(torch.rand(2, 3, 64, 64))
    assert {layer: x.shape[1] for layer, x in maps.items()} == dict(zip(layers, CHANNELS[name]))
    assert all(x.requires_grad == requires_grad for x in maps.values())
