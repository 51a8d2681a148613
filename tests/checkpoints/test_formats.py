from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from golden import MODELS, TINY, Classifier, image, weight, weights
from timm.layers import QuickGELU
from torch import Tensor, nn

from cvt_dense import CvTTrunk
from cvt_dense.checkpoints.formats import from_transformers, is_official, is_transformers, to_trunk, unwrap

#: The port looks its drop-path rates up by stage, so its third stage cannot be built with fewer than three blocks.
SMALL = TINY | dict(depths=(1, 2, 3))


@pytest.fixture(scope='module')
def official() -> dict[str, Tensor]:
    return weights(Classifier(SMALL, 10))


def huggingface(with_head: bool) -> nn.Module:
    """The port of ``transformers`` of SMALL and the reference's rule for the weights."""
    transformers = pytest.importorskip('transformers')
    config = transformers.CvtConfig(
        embed_dim=list(SMALL['embed_dims']),
        num_heads=list(SMALL['num_heads']),
        depth=list(SMALL['depths']),
        num_labels=10,
    )
    model = (transformers.CvtForImageClassification if with_head else transformers.CvtModel)(config)
    model.load_state_dict({key: weight(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()})
    return model.eval()


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_official_names_stay_as_they_are(official: dict[str, Tensor]) -> None:
    tensors, name = to_trunk(official)
    assert name == 'official'
    assert same(tensors, official)


@pytest.mark.parametrize('with_head', [True, False])
def test_transformers_names_all_become_the_trunks(with_head: bool) -> None:
    theirs = huggingface(with_head).state_dict()
    tensors, name = to_trunk(theirs)
    expected = {key: tensor.shape for key, tensor in Classifier(SMALL, 10).state_dict().items()}
    if not with_head:
        expected = {key: shape for key, shape in expected.items() if key.startswith('stage')}
    assert name == 'transformers'
    assert {key: tensor.shape for key, tensor in tensors.items()} == expected
    assert sorted(id(t) for t in tensors.values()) == sorted(id(t) for t in theirs.values())


@pytest.mark.parametrize('arch', ['cvt_13', 'cvt_21'])
def test_transformers_names_fit_the_published_depths(arch: str) -> None:
    transformers = pytest.importorskip('transformers')
    depths = CvTTrunk(MODELS[arch], num_stages=1).arch.depths
    small = dict(embed_dims=(8, 16, 24), num_heads=(1, 2, 3), depths=depths)
    config = transformers.CvtConfig(embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=list(depths))
    tensors, _ = to_trunk(transformers.CvtModel(config).state_dict())
    assert tensors.keys() == CvTTrunk(small).state_dict().keys()


@pytest.mark.parametrize('size', [(64, 96), (65, 97), (47, 33), (16, 16), (17, 130)])
def test_renamed_transformers_weights_compute_what_transformers_does_with_our_activation(size: tuple[int, int]) -> None:
    theirs = huggingface(with_head=True)
    for module in theirs.modules():
        if type(module).__name__ == 'CvtIntermediate':
            module.activation = QuickGELU()  # the port's plain GELU is not the authors'
    ours = Classifier(SMALL, 10).eval()
    ours.load_state_dict(to_trunk(theirs.state_dict())[0])
    x = image(*size, 2)
    with torch.no_grad():
        maps, logits = ours(x)
        expected = theirs(x, output_hidden_states=True)
    assert len(maps) == len(expected.hidden_states) == 3
    for got, want in zip([*maps, logits], [*expected.hidden_states, expected.logits]):
        assert got.shape == want.shape
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize(
    ('containers', 'prefix'),
    [
        ((), 'module.'),
        ((), 'backbone.'),
        ((), 'module.backbone.'),
        (('state_dict',), ''),
        (('model',), ''),
        (('state_dict',), 'backbone.'),
        (('model',), 'module.'),
        (('state_dict',), 'module.backbone.'),
        (('state_dict', 'model'), 'backbone.'),
    ],
)
@pytest.mark.parametrize('transformers', [False, True])
def test_wrappers_are_taken_off(
    official: dict[str, Tensor], containers: tuple[str, ...], prefix: str, transformers: bool
) -> None:
    source = huggingface(with_head=True).state_dict() if transformers else official
    expected = from_transformers(source) if transformers else official
    checkpoint: dict[str, Any] = {prefix + key: tensor for key, tensor in source.items()}
    for container in reversed(containers):
        checkpoint = {container: checkpoint, 'epoch': 3, 'optimizer': {'state': {0: torch.zeros(1)}}}
    tensors, name = to_trunk(checkpoint)
    assert name == ('transformers' if transformers else 'official')
    assert same(tensors, expected)


def test_of_a_detector_only_the_backbone_is_taken(official: dict[str, Tensor]) -> None:
    detector = {f'backbone.{key}': tensor for key, tensor in official.items()}
    checkpoint = {'state_dict': detector | {'neck.conv.weight': torch.zeros(1)}, 'meta': {'epoch': 1}}
    assert same(to_trunk(checkpoint)[0], official)


@pytest.mark.parametrize('prefix', ['student.encoder', 'student.encoder.'])
def test_an_explicit_prefix_chooses_among_several(official: dict[str, Tensor], prefix: str) -> None:
    checkpoint = {f'student.encoder.{key}': tensor for key, tensor in official.items()}
    checkpoint |= {f'backbone.{key}': tensor + 1 for key, tensor in official.items()}
    assert same(to_trunk({'state_dict': checkpoint}, prefix)[0], official)


def test_nothing_below_an_explicit_prefix_is_no_format(official: dict[str, Tensor]) -> None:
    assert to_trunk(official, 'backbone') is None


def test_a_prefix_ends_at_a_dot(official: dict[str, Tensor]) -> None:
    assert to_trunk({f'backbone2.{key}': tensor for key, tensor in official.items()}, 'backbone') is None


def test_what_is_no_tensor_is_dropped(official: dict[str, Tensor]) -> None:
    assert same(unwrap(official | {'epoch': 7, 'note': 'x', 'history': [1.0]}), official)


@pytest.mark.parametrize(
    'foreign',
    [
        {},
        {'epoch': 3},
        {'conv1.weight': torch.zeros(1), 'layer1.0.conv1.weight': torch.zeros(1)},
        {'state_dict': {'backbone.conv1.weight': torch.zeros(1)}},
        {'model': {'patch_embed.proj.weight': torch.zeros(1)}},
        {'stage0.patch_embed.proj.weight': 'no tensor'},
        {'encoder.layer.0.weight': torch.zeros(1)},
        {0: torch.zeros(1)},
    ],
    ids=str,
)
def test_foreign_dicts_are_no_format(foreign: dict[Any, Any]) -> None:
    assert to_trunk(foreign) is None


def test_each_format_is_recognised_by_its_own_names_only(official: dict[str, Tensor]) -> None:
    theirs = huggingface(with_head=True).state_dict()
    assert is_official(official)
    assert not is_transformers(official)
    assert is_transformers(theirs)
    assert not is_official(theirs)


def test_the_input_is_left_as_it_was(official: dict[str, Tensor]) -> None:
    for source in (official, huggingface(with_head=True).state_dict()):
        checkpoint = {'state_dict': {f'backbone.{key}': tensor for key, tensor in source.items()}, 'meta': {'a': 1}}
        before = copy.deepcopy(checkpoint)
        to_trunk(checkpoint)
        assert checkpoint.keys() == before.keys()
        assert list(checkpoint['state_dict']) == list(before['state_dict'])
        assert same(checkpoint['state_dict'], before['state_dict'])
