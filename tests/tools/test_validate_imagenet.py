from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import validate_imagenet
from golden import TINY, Classifier, CMTClassifier, weights
from PIL import Image
from torch import nn

from cvt_dense import CheckpointError
from cvt_dense.checkpoints.formats import to_transformers
from cvt_dense.errors import UserError

CLASSES = ('n01440764', 'n01443537', 'n01484850')


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven images in folders of three classes, as ImageNet's validation images are laid out."""
    rng = np.random.default_rng(0)
    for index, count in enumerate((1, 2, 4)):
        folder = tmp_path / 'val' / CLASSES[index]
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (40 + index, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'ILSVRC2012_val_{number}.JPEG')
    return tmp_path / 'val'


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['validate_imagenet.py', *map(str, arguments)])
    validate_imagenet.main()


def always(label: int, num_classes: int) -> nn.Module:
    """A model that is certain of one class."""
    model = timm.create_model('cvt_13', arch=TINY, num_classes=num_classes)
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = -torch.arange(num_classes).sub(label).abs().float()
    return model


@pytest.mark.parametrize(('label', 'top1'), [(0, '14.29'), (1, '28.57'), (2, '57.14')])
def test_accuracy_is_that_of_the_images_in_the_folders(
    label: int, top1: str, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(validate_imagenet, 'build_model', lambda *_: always(label, 3))
    run(monkeypatch, '--data', images, '--batch-size', 2, '--workers', 0)
    assert f'cvt_13: top-1 {top1} %, top-5 100.00 % of 7 images' in capsys.readouterr().out


def test_top_5_counts_the_five_best() -> None:
    batches = [(torch.zeros(6, 3, 32, 32), torch.arange(6))]
    hits = validate_imagenet.Hits()
    validate_imagenet.evaluate(always(0, 6), batches, torch.device('cpu'), amp=False, hits=hits)
    assert (hits.top1, hits.top5, hits.total) == (1, 5, 6)
    assert str(hits) == 'top-1 16.67 %, top-5 83.33 %'


def test_lower_precision_is_used_if_asked_for() -> None:
    batches = [(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))]
    model = always(0, 3)
    types = []
    model.head.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    for amp in (True, False):
        validate_imagenet.evaluate(model, batches, torch.device('cpu'), amp, validate_imagenet.Hits())
    assert types == [torch.bfloat16, torch.float32]


def test_missing_and_empty_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_imagenet, 'build_model', lambda *_: always(0, 3))
    with pytest.raises(UserError, match='nowhere does not exist'):
        run(monkeypatch, '--data', tmp_path / 'nowhere')
    with pytest.raises(UserError, match='holds no images in folders of their classes'):
        run(monkeypatch, '--data', tmp_path)


def test_other_classes_than_the_models_are_refused(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_imagenet, 'build_model', lambda *_: always(0, 4))
    with pytest.raises(UserError, match='has 3 classes; the model has 4'):
        run(monkeypatch, '--data', images)


@pytest.mark.parametrize('name', ['cvt_99', 'resnet50', 'cvt_13.nope', ''])
def test_an_unknown_model_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=r'unknown model .*cvt_21\.msft_in1k_384'):
        validate_imagenet.build_model(name, None)


@pytest.mark.parametrize('convert', [dict, to_transformers, lambda tensors: dict(state_dict=tensors)])
def test_a_checkpoint_of_any_format_is_taken(convert: object, tmp_path: Path) -> None:
    tensors = weights(Classifier('cvt-13', 1000))
    torch.save(convert(tensors), tmp_path / 'a.pth')
    model = validate_imagenet.build_model('cvt_13', str(tmp_path / 'a.pth'))
    assert torch.equal(model.head.weight, tensors['head.weight'])
    assert torch.equal(model.stages[2].cls_token, tensors['stage2.cls_token'])


@pytest.mark.parametrize(
    ('model', 'resolution'), [('cvt_13', 384), ('cvt_13.msft_in1k', 224), ('cvt_13.msft_in22k_ft_in1k_384', 384)]
)
def test_a_published_checkpoint_brings_its_resolution_unless_a_tag_is_given(
    model: str, resolution: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(weights(Classifier('cvt-13', 1000)), tmp_path / 'CvT-13-384x384-IN-22k.pth')
    monkeypatch.setenv('CVT_DENSE_CHECKPOINTS', str(tmp_path))
    built = validate_imagenet.build_model(model, 'cvt-13-384x384-in22k')
    assert built.pretrained_cfg['input_size'] == (3, resolution, resolution)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(('--batch-size', 0), '--batch-size must be'), (('--device', 'abacus'), '--device abacus cannot be used')],
)
def test_settings_that_cannot_be_used_are_named(
    arguments: tuple[object, ...], message: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, '--data', images, *arguments)


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    tensors = weights(Classifier('cvt-13', 1000))
    torch.save(tensors, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match="these are cvt-13's; the config asks for cvt-21"):
        validate_imagenet.build_model('cvt_21', str(tmp_path / 'a.pth'))
    torch.save({key: t for key, t in tensors.items() if not key.startswith('head')}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='holds no classifier') as error:
        validate_imagenet.build_model('cvt_13', str(tmp_path / 'a.pth'))
    assert '\n' not in str(error.value)


def test_a_file_of_cmt_is_taken_as_its_authors_wrap_it(tmp_path: Path) -> None:
    with torch.device('meta'):
        names = CMTClassifier('cmt-ti', 1280, 1000)
    tensors = weights(names)
    torch.save(dict(model=tensors, args=Namespace(lr=0.1)), tmp_path / 'cmt_tiny.pth')
    model = validate_imagenet.build_model('cmt_ti', str(tmp_path / 'cmt_tiny.pth'))
    assert torch.equal(model.head.weight, tensors['head.weight'])
    assert model.pretrained_cfg['input_size'] == (3, 160, 160)
