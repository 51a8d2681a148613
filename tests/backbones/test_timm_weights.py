"""A converted file loads by any of timm's calls, and what it lacks is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden import TINY, Classifier, weights
from torch import Tensor, nn

from cvt_dense import CheckpointError
from cvt_dense.checkpoints.formats import to_timm, to_transformers

CLASSES = 10


@pytest.fixture(params=['checkpoint_path', 'overlay'])
def call(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Makes a model of these weights, by one of the two calls that timm has for a file."""

    def create(tensors: dict[str, Tensor], **settings: Any) -> nn.Module:
        path = tmp_path / 'x.pth'
        torch.save(tensors, path)
        settings = dict(arch=TINY) | settings
        if request.param == 'checkpoint_path':
            return timm.create_model('cvt_13', checkpoint_path=str(path), **settings)
        overlay = dict(file=str(path), num_classes=CLASSES)
        return timm.create_model('cvt_13', pretrained=True, pretrained_cfg_overlay=overlay, **settings)

    return create


def whole() -> dict[str, Tensor]:
    return weights(Classifier(TINY, CLASSES))


def backbone() -> dict[str, Tensor]:
    """A detector's: no head and no final norm, but output norms."""
    tensors = {key: tensor for key, tensor in whole().items() if key.startswith('stage')}
    return tensors | {'norm0.weight': torch.ones(TINY['embed_dims'][0])}


def loaded(model: nn.Module) -> dict[str, Tensor]:
    return {key.removeprefix('model.'): tensor for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize('names', [dict, to_timm, to_transformers])
@pytest.mark.parametrize('settings', [dict(num_classes=CLASSES), dict(num_classes=0), dict(features_only=True)])
def test_a_whole_model_loads(call: Any, names: Any, settings: dict[str, Any]) -> None:
    tensors = loaded(call(names(whole()), **settings))
    assert ('head.weight' in tensors) == (settings.get('num_classes') == CLASSES)
    assert ('norm.weight' in tensors) == ('features_only' not in settings)
    expected = to_timm(whole())
    assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize('out_indices', [(0, 1, 2), (0, 1)])
def test_the_backbone_of_a_detector_gives_feature_maps(
    call: Any, out_indices: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    tensors = to_timm(backbone())
    model = call(tensors, features_only=True, out_indices=out_indices)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in loaded(model).items())
    assert len(model.eval()(torch.zeros(1, 3, 32, 32))) == len(out_indices)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_backbone_of_a_detector_gives_features_after_a_plain_norm(
    call: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = call(to_timm(backbone()), num_classes=0)
    assert torch.equal(model.norm.weight, torch.ones(TINY['embed_dims'][-1]))
    assert torch.equal(model.norm.bias, torch.zeros(TINY['embed_dims'][-1]))
    assert 'cvt_13.msft_in1k: the checkpoint has no final norm' in caplog.text


def test_the_backbone_of_a_detector_is_no_classifier(call: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r'^checkpoint for cvt_13\.msft_in1k holds no classifier, as a back'
    ) as error:
        call(to_timm(backbone()), num_classes=CLASSES)
    assert '\n' not in str(error.value)
    assert 'features_only=True' in str(error.value)


def test_a_new_head_is_asked_for_by_its_classes_with_pretrained_only(tmp_path: Path, caplog: Any) -> None:
    torch.save(to_timm(whole()), tmp_path / 'x.pth')
    overlay = dict(file=str(tmp_path / 'x.pth'), num_classes=CLASSES)
    timm.create_model('cvt_13', arch=TINY, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with pytest.raises(CheckpointError, match='a head for 10 classes, and the model one for 3: set num_classes=10'):
        timm.create_model('cvt_13', arch=TINY, checkpoint_path=tmp_path / 'x.pth', num_classes=3)


def test_a_head_that_timm_leaves_out_unasked_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By timm's rule the classes of a file are those that its description says: the published thousand."""
    torch.save(to_timm(whole()), tmp_path / 'x.pth')
    overlay = dict(file=str(tmp_path / 'x.pth'))
    settings = dict(arch=TINY, pretrained=True, num_classes=CLASSES)
    timm.create_model('cvt_13', pretrained_cfg_overlay=overlay, **settings)
    assert 'the head of the checkpoint is not taken' in caplog.text
    caplog.clear()
    model = timm.create_model('cvt_13', pretrained_cfg_overlay=overlay | dict(num_classes=CLASSES), **settings)
    assert 'not taken' not in caplog.text
    assert torch.equal(model.head.weight, whole()['head.weight'])


def test_weights_of_another_shape_are_told_in_one_line(call: Any) -> None:
    other = TINY | dict(depths=(1, 1, 2))
    for settings in (dict(num_classes=CLASSES), dict(features_only=True)):
        with pytest.raises(CheckpointError, match=r'does not fit the model.*: \d+ not in the model') as error:
            call(to_timm(whole()), arch=other, **settings)
        assert '\n' not in str(error.value)


def test_states_of_the_model_itself_load_as_in_torch() -> None:
    for settings in (dict(num_classes=3), dict(features_only=True)):
        models = [timm.create_model('cvt_13', arch=TINY, **settings) for _ in range(2)]
        models[0].load_state_dict(models[1].state_dict())
        ours, theirs = (model.state_dict() for model in models)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
        some = dict(list(models[1].state_dict().items())[:3])
        assert models[0].load_state_dict(some, strict=False).missing_keys
