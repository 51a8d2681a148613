"""Checkpoints of each family, and what tells them apart."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import Family, each_family
from golden import CMT_TINY, TINY, Classifier, CMTClassifier, image, weights
from torch import Tensor

from cvt_dense import CMT, CMTTrunk, load_pretrained
from cvt_dense.checkpoints.families import FAMILIES
from cvt_dense.checkpoints.load import check_complete
from cvt_dense.errors import CheckpointError

CMT_64 = CMT_TINY | dict(pretrain_size=64)
CLASSIFIERS = {'CvT': lambda: Classifier(TINY, 10), 'CMT': lambda: CMTClassifier(CMT_64, 64, 10)}


def saved(tmp_path: Path, content: object) -> str:
    torch.save(content, tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth')


def refusal(model: Any, checkpoint: str) -> str:
    """The message with which a checkpoint is refused; the model must be left as it was."""
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_pretrained(model, checkpoint)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    message = str(error.value)
    assert message.startswith(f'checkpoint {checkpoint} ')
    assert '\n' not in message
    return message.removeprefix(f'checkpoint {checkpoint} ')


@pytest.fixture
def official() -> dict[str, Tensor]:
    return weights(CLASSIFIERS['CMT']())


@each_family
def test_a_classifiers_file_covers_the_backbone(family: Family, tmp_path: Path) -> None:
    tensors = weights(CLASSIFIERS[family.name]())
    model = family.build(init_cfg=dict(type='Pretrained', checkpoint=saved(tmp_path, tensors)))
    model.init_weights()
    own = {key: tensor for key, tensor in model.state_dict().items() if model.place_of(key)}
    assert len(own) > 100
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in own.items())


@each_family
def test_a_file_is_recognised_as_of_its_family_alone(family: Family) -> None:
    tensors = weights(CLASSIFIERS[family.name]())
    for name, other in FAMILIES.items():
        found = [known for known in other.formats.values() if known.recognises(tensors)]
        assert bool(found) == (name == family.name)


@each_family
def test_a_file_of_another_family_is_named(family: Family, tmp_path: Path) -> None:
    (other,) = (name for name in CLASSIFIERS if name != family.name)
    path = saved(tmp_path, weights(CLASSIFIERS[other]()))
    assert refusal(family.build(), path) == f'holds weights of {other}, and the model is a {family.name}'


@pytest.mark.parametrize('arch', ['cmt-xs', 'cmt-b'])
def test_a_file_of_another_variant_is_named(arch: str, tmp_path: Path) -> None:
    """As old copies of cmt_xs.pth, which are in truth CMT-S."""
    with torch.device('meta'):
        shapes = CMTTrunk('cmt-s').state_dict()
    path = saved(tmp_path, {name: torch.zeros(()).expand(tensor.shape) for name, tensor in shapes.items()})
    message = refusal(CMTTrunk(arch, num_stages=1), path)
    assert message.startswith(f"does not fit the model (these are cmt-s's; the config asks for {arch}): ")


def test_a_file_is_read_as_the_authors_wrap_it(tmp_path: Path, official: dict[str, Tensor]) -> None:
    averaged = {key: tensor + 1 for key, tensor in official.items()}
    wrapped = dict(
        model=official,
        model_ema=averaged,
        optimizer=dict(
            state={0: dict(step=3, exp_avg=torch.zeros(2))}, param_groups=[dict(lr=1e-3, betas=(0.9, 0.99))]
        ),
        epoch=299,
        args=Namespace(model='cmt_small', lr=6e-3, opt_betas=None, distributed=True, gpu=0, cutmix_minmax=[0.1, 1.0]),
    )
    model = CMTTrunk(CMT_64)
    report = load_pretrained(model, saved(tmp_path, wrapped))
    assert report.left_over == ('_bn', '_fc', 'head')
    assert report.adapted == ''
    assert all(torch.equal(tensor, official[key]) for key, tensor in model.state_dict().items())
    wrapped.pop('model')
    load_pretrained(model, saved(tmp_path, wrapped))
    assert torch.equal(model.relative_pos_a, averaged['relative_pos_a'])


class Code:
    """What runs a command if it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'touch "{self.marker}"',)


def test_arguments_that_carry_code_are_refused_and_not_run(tmp_path: Path, official: dict[str, Tensor]) -> None:
    marker = tmp_path / 'was run'
    path = saved(tmp_path, dict(model=official, args=Namespace(hook=Code(marker))))
    assert refusal(CMTTrunk(CMT_64), path).startswith('was refused: it is damaged, or holds more than plain weights')
    assert not marker.exists()


@pytest.mark.parametrize('pretrain_size', [96, (64, 96)])
def test_a_position_bias_for_another_size_is_what_it_is_at_that_size(
    pretrain_size: Any, tmp_path: Path, official: dict[str, Tensor]
) -> None:
    path = saved(tmp_path, official)
    ours, other = CMTTrunk(CMT_64).eval(), CMTTrunk(CMT_TINY, pretrain_size=pretrain_size).eval()
    load_pretrained(ours, path)
    report = load_pretrained(other, path)
    size = (96, 96) if pretrain_size == 96 else (64, 96)
    assert report.adapted == f'position bias of images of 64 pixels interpolated to {size[0]}x{size[1]}'
    assert report.adapted in str(report)
    with torch.no_grad():
        for x, y in zip(other(image(*size, 1)), ours(image(*size, 1))):
            assert (x - y).abs().max() <= 1e-5 * y.abs().max()


def test_a_position_bias_whose_sides_do_not_show_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, weights(CMTTrunk(CMT_TINY, pretrain_size=(64, 96))))
    message = refusal(CMTTrunk(CMT_64), path)
    assert message.startswith('does not fit the model: 4 misshapen (relative_pos_a is [1, 384, 6], not [1, 256, 4], ')
    load_pretrained(CMTTrunk(CMT_TINY, pretrain_size=(64, 96)), path)


def test_a_position_bias_with_other_heads_or_strides_is_refused(tmp_path: Path, official: dict[str, Tensor]) -> None:
    for settings in (dict(kv_stride=(4, 4, 2, 1)), dict(num_heads=(2, 2, 4, 8))):
        assert 'relative_pos_a is ' in refusal(CMTTrunk(CMT_64 | settings), saved(tmp_path, official))


def test_a_table_that_is_missing_is_named(tmp_path: Path, official: dict[str, Tensor]) -> None:
    official.pop('relative_pos_c')
    assert refusal(CMTTrunk(CMT_64), saved(tmp_path, official)).endswith(': 1 missing (relative_pos_c)')


def test_of_a_trained_detector_the_backbone_is_taken_with_its_output_norms(tmp_path: Path) -> None:
    trained = CMT(CMT_64)
    torch.nn.init.uniform_(trained.norm3.weight)
    state = {f'backbone.{name}': tensor for name, tensor in trained.state_dict().items()} | {'neck.x': torch.zeros(1)}
    model = CMT(CMT_64)
    load_pretrained(model, saved(tmp_path, dict(state_dict=state)))
    assert all(torch.equal(tensor, trained.state_dict()[key]) for key, tensor in model.state_dict().items())


@each_family
def test_a_complete_trunk_is_told_from_one_that_is_not(family: Family) -> None:
    known = FAMILIES[family.name]
    tensors = weights(CLASSIFIERS[family.name]())
    check_complete('FILE', tensors, known)
    check_complete('FILE', weights(family.trunk(family.small)), known)
    parts = [name for name in tensors if family.trunk.place_of(name) and 'num_batches' not in name]
    for name in (parts[0], parts[len(parts) // 2], known.embedding(1), known.stem(tensors)):
        with pytest.raises(CheckpointError, match=r'^checkpoint FILE '):
            check_complete('FILE', {key: tensor for key, tensor in tensors.items() if key != name}, known)
