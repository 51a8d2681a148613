from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import MODELS, TINY, Classifier, image, weight, weights
from timm.layers import QuickGELU
from torch import Tensor, nn

from cvt_dense import CvTClassifier, CvTTrunk, load_pretrained
from cvt_dense.checkpoints.files import read
from cvt_dense.checkpoints.formats import FORMATS, Format, from_transformers, to_timm, to_transformers, to_trunk, unwrap
from cvt_dense.checkpoints.sources import fetch
from cvt_dense.models.cvt.arch import ARCHS

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


#: The published variants' depths and heads on channels that a test can afford.
STRUCTURES = {
    'cvt-13': dict(embed_dims=(16, 48, 96), num_heads=(1, 3, 6), depths=(1, 2, 10)),
    'cvt-21': dict(embed_dims=(16, 48, 96), num_heads=(1, 3, 6), depths=(1, 4, 16)),
    'cvt-w24': dict(embed_dims=(24, 96, 128), num_heads=(3, 12, 16), depths=(2, 2, 20)),
}


@pytest.mark.parametrize('name', STRUCTURES)
def test_what_transformers_saves_computes_the_same_here_with_our_activation(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip('transformers')
    arch = STRUCTURES[name]
    assert (ARCHS[name].num_heads, ARCHS[name].depths) == (arch['num_heads'], arch['depths'])
    config = transformers.CvtConfig(
        embed_dim=list(arch['embed_dims']), num_heads=list(arch['num_heads']), depth=list(arch['depths']), num_labels=10
    )
    theirs = transformers.CvtForImageClassification(config).eval()
    theirs.load_state_dict({key: weight(key, tuple(tensor.shape)) for key, tensor in theirs.state_dict().items()})
    for module in theirs.modules():
        if type(module).__name__ == 'CvtIntermediate':
            module.activation = QuickGELU()  # the port's plain GELU is not the authors'
    theirs.save_pretrained(tmp_path)
    ours = CvTClassifier(arch, num_classes=10).eval()
    ours.load_state_dict(to_timm(to_trunk(read(fetch(str(tmp_path))))[0]))
    trunk = CvTTrunk(arch).eval()
    load_pretrained(trunk, tmp_path)
    for size in ((64, 96), (65, 97), (47, 33), (16, 16), (17, 130)):
        x = image(*size, 2)
        with torch.no_grad():
            results = [*trunk(x)[0], ours(x)]
            expected = theirs(x, output_hidden_states=True)
        assert len(expected.hidden_states) == 3
        for got, want in zip(results, [*expected.hidden_states, expected.logits]):
            assert got.shape == want.shape
            assert (got - want).abs().max() <= 1e-5 * want.abs().max(), size


@pytest.mark.parametrize(
    ('containers', 'prefix'),
    [
        ((), 'module.'),
        ((), 'backbone.'),
        ((), 'module.backbone.'),
        ((), '_orig_mod.'),
        ((), 'module._orig_mod.'),
        ((), '_orig_mod.module.backbone.'),
        ((), 'backbone._orig_mod.'),
        (('state_dict',), ''),
        (('model',), ''),
        (('state_dict',), 'backbone.'),
        (('model',), 'module.'),
        (('state_dict',), 'module.backbone.'),
        (('state_dict',), '_orig_mod.backbone.'),
        (('state_dict', 'model'), 'backbone.'),
        (('state_dict_ema',), 'module.'),
    ],
)
@pytest.mark.parametrize('known', FORMATS.items(), ids=lambda known: known[0])
def test_wrappers_are_taken_off(
    official: dict[str, Tensor], containers: tuple[str, ...], prefix: str, known: tuple[str, Format]
) -> None:
    format_name, known_format = known
    source = known_format.from_trunk(official)
    checkpoint: dict[str, Any] = {prefix + key: tensor for key, tensor in source.items()}
    for container in reversed(containers):
        checkpoint = {container: checkpoint, 'epoch': 3, 'optimizer': {'state': {0: torch.zeros(1)}}}
    tensors, name = to_trunk(checkpoint)
    assert name == format_name
    assert same(tensors, official)


def test_of_timms_two_the_average_is_taken_as_by_timm(official: dict[str, Tensor]) -> None:
    plain = {key: tensor + 1 for key, tensor in official.items()}
    assert same(to_trunk({'state_dict': plain, 'state_dict_ema': official})[0], official)


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


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('part', ['classifier', 'trunk', 'first stage', 'parameters'])
def test_each_format_is_recognised_by_its_own_names_only(official: dict[str, Tensor], name: str, part: str) -> None:
    first = {
        'classifier': '',
        'trunk': 'stage',
        'first stage': 'stage0.',
        'parameters': tuple(key for key, _ in Classifier(SMALL, 10).named_parameters()),
    }[part]
    foreign = FORMATS[name].from_trunk({key: tensor for key, tensor in official.items() if key.startswith(first)})
    assert [other for other, known in FORMATS.items() if known.recognises(foreign)] == [name]


@pytest.mark.parametrize('with_head', [True, False])
def test_what_transformers_has_is_recognised_as_such(with_head: bool) -> None:
    theirs = huggingface(with_head).state_dict()
    assert [name for name, known in FORMATS.items() if known.recognises(theirs)] == ['transformers']


@pytest.mark.parametrize('known', FORMATS.values(), ids=FORMATS)
def test_there_and_back_every_tensor_has_its_name_again(official: dict[str, Tensor], known: Format) -> None:
    foreign = known.from_trunk(official)
    assert list(known.to_trunk(foreign)) == list(official)
    assert list(known.from_trunk(known.to_trunk(foreign))) == list(foreign)
    assert [id(tensor) for tensor in known.to_trunk(foreign).values()] == [id(t) for t in official.values()]


@pytest.mark.parametrize('arch', ['cvt-13', 'cvt-21', 'cvt-w24'])
def test_there_and_back_holds_for_the_names_of_published_depths(arch: str) -> None:
    with torch.device('meta'):
        names = Classifier(arch, 1).state_dict()
    for known in FORMATS.values():
        assert list(known.to_trunk(known.from_trunk(names))) == list(names)


def test_names_for_transformers_are_the_ports_own(official: dict[str, Tensor]) -> None:
    theirs = huggingface(with_head=True)
    renamed = to_transformers(official)
    assert {key: t.shape for key, t in renamed.items()} == {key: t.shape for key, t in theirs.state_dict().items()}
    theirs.load_state_dict(renamed)
    assert torch.equal(theirs.cvt.encoder.stages[2].cls_token, official['stage2.cls_token'])
    assert same(from_transformers(theirs.state_dict()), official)


def test_names_for_timm_are_those_of_our_timm_model(official: dict[str, Tensor]) -> None:
    assert to_timm(official).keys() == CvTClassifier(SMALL, num_classes=10).state_dict().keys()


def test_the_input_is_left_as_it_was(official: dict[str, Tensor]) -> None:
    for source in (known.from_trunk(official) for known in FORMATS.values()):
        checkpoint = {'state_dict': {f'backbone.{key}': tensor for key, tensor in source.items()}, 'meta': {'a': 1}}
        before = copy.deepcopy(checkpoint)
        to_trunk(checkpoint)
        assert checkpoint.keys() == before.keys()
        assert list(checkpoint['state_dict']) == list(before['state_dict'])
        assert same(checkpoint['state_dict'], before['state_dict'])


@pytest.mark.parametrize('known', FORMATS.values(), ids=FORMATS)
def test_output_norms_of_a_detectors_backbone_are_nobodys_layers(known: Format) -> None:
    norms = {f'norm{stage}.weight': torch.ones(1) for stage in range(3)}
    assert known.from_trunk(norms).keys() == known.to_trunk(norms).keys() == norms.keys()
