from __future__ import annotations

import json
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
from timm.data import RealLabelsImagenet, create_dataset
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


def folders(root: Path, names: list[str]) -> Path:
    """As many images in each folder as its place says, the first one having one."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(place + 1):
            Image.new('RGB', (32, 32)).save(root / name / f'{number}.png')
    return root


def test_folders_named_by_numbers_are_classes_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folders(tmp_path, [str(number) for number in range(12)])
    for label in (2, 10, 11):  # as text, 10 and 11 stand before 2
        monkeypatch.setattr(validate_imagenet, 'build_model', lambda *_, label=label: always(label, 12))
        run(monkeypatch, '--data', data, '--workers', 0)
        printed = capsys.readouterr().out
        assert 'classes: 12 folders, named by the index of the class from 0 to 11\n' in printed
        assert f'cvt_13: top-1 {100 * (label + 1) / 78:.2f} %' in printed


def test_folders_named_by_numbers_need_no_order_of_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folders(tmp_path, [str(number) for number in range(12)])
    monkeypatch.setattr('timm.data.readers.reader_image_folder.natural_key', lambda name: name)
    dataset, _ = validate_imagenet.open_dataset(str(data))
    assert all(Path(file).parent.name == str(label) for file, label in dataset.reader.samples)
    assert len(dataset) == 78


@pytest.mark.parametrize('names', [['n01440764', 'n01443537', 'n02119789'], ['b', 'a10', 'a9']])
def test_folders_with_other_names_are_classes_in_timms_order(names: list[str], tmp_path: Path) -> None:
    data = str(folders(tmp_path, names))
    dataset, reading = validate_imagenet.open_dataset(data)
    plain = create_dataset('', root=data)
    assert dataset.reader.class_to_idx == plain.reader.class_to_idx
    assert dataset.reader.samples == plain.reader.samples
    assert reading == '3 folders, in the order of their names'


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['0', '1', 'n01440764'], 'named by numbers, such as 0, and others, such as n01440764'),
        (['0', '1', '.'], 'named by numbers, such as 0, and others, such as the data folder itself'),
        (['1', '2', '3'], 'which are not 0 to 2 but 1 to 3'),
        (['0', '1', '3'], 'which are not 0 to 2 but 0 to 3'),
        (['0', '1', '01'], 'which are not 0 to 2 but 0 to 1'),
    ],
)
def test_numbers_that_leave_the_classes_open_are_refused(
    names: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate_imagenet, 'build_model', lambda *_: always(0, 3))
    with pytest.raises(UserError, match=message) as error:
        run(monkeypatch, '--data', folders(tmp_path, names))
    assert '\n' not in str(error.value)


def test_leading_zeros_are_numbers_too(tmp_path: Path) -> None:
    dataset, _ = validate_imagenet.open_dataset(str(folders(tmp_path, [f'{number:03d}' for number in range(11)])))
    assert dataset.reader.class_to_idx['010'] == 10


@pytest.fixture
def numbered(images: Path) -> Path:
    """The seven images under names as ImageNet's, the numbers from 1 on."""
    for number, file in enumerate(sorted(images.rglob('*.JPEG')), 1):
        file.rename(file.with_name(f'ILSVRC2012_val_{number:08d}.JPEG'))
    return images


def real_labels(folder: Path, first: list[list[int]]) -> Path:
    """A file with labels of the first images, and none of the others."""
    (folder / 'real.json').write_text(json.dumps(first + [[]] * (50000 - len(first))))
    return folder / 'real.json'


def test_real_labels_count_any_of_an_images_labels_and_no_image_without(
    numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(validate_imagenet, 'build_model', lambda *_: always(2, 3))
    labels = real_labels(tmp_path, [[2], [0, 2], [], [0], [1, 2], [], [2]])
    run(monkeypatch, '--data', numbered, '--workers', 0, '--batch-size', 2, '--real-labels', labels)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        'cvt_13: top-1 57.14 %, top-5 100.00 % of 7 images',
        'cvt_13: ReaL top-1 80.00 %, top-5 100.00 % of 5 images with labels',
    ]


def test_real_labels_go_by_the_number_in_the_name(tmp_path: Path) -> None:
    labels = real_labels(tmp_path, [[0], [1], [], [2, 3]])
    names = [
        'ILSVRC2012_val_00000004.JPEG',
        'val/ILSVRC2012_val_00000001_n01751748.webp',
        'ILSVRC2012_val_00000003.png',
    ]
    assert validate_imagenet.read_real_labels(str(labels), names, 4) == [{2, 3}, {0}, set()]


def test_real_labels_count_as_timm_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f'ILSVRC2012_val_{number:08d}.JPEG' for number in range(1, 50001)]
    ours = validate_imagenet.RealHits(validate_imagenet.read_real_labels('', names, 1000))
    theirs = RealLabelsImagenet(names)
    logits = torch.randn(2000, 1000, generator=torch.Generator().manual_seed(0))
    for number in range(0, 2000, 2):  # the first label of some
        if label := next(iter(theirs.real_labels[names[number]]), None):
            logits[number, label] += 3
    ours.add(logits, torch.zeros(2000))
    theirs.add_result(logits)
    assert 100 * ours.top1 / ours.total == pytest.approx(theirs.get_accuracy(1))
    assert 100 * ours.top5 / ours.total == pytest.approx(theirs.get_accuracy(5))
    assert ours.top1 > 100


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, r'real\.json cannot be read: No such file .*reassessed-imagenet'),
        ('<html>', r'real\.json is not JSON: Expecting value'),
        ('\udcff', 'is not JSON'),
        ('[[0], [1]]', 'holds 2 entries; it must be a list of 50000 lists of class indices'),
        ('{"a": 1}', 'holds a value of type dict; it must be a list'),
        ('7', 'holds a value of type int; it must be a list'),
        (json.dumps([[0]] * 49999 + [3]), 'holds 3 for image 50000; it must be'),
        (json.dumps([['cat']] + [[0]] * 49999), r"holds \['cat'\] for image 1; it must be"),
        (json.dumps([[True]] + [[0]] * 49999), r'holds \[True\] for image 1; it must be'),
        (json.dumps([[-1]] + [[0]] * 49999), r'holds \[-1\] for image 1; it must be'),
        (json.dumps([[3]] + [[0]] * 49999), 'names class 3, and the model has 3 classes'),
        (json.dumps([[]] * 50000), 'none of the 7 images has a ReaL label'),
    ],
    ids=range(12),
)
def test_files_that_are_no_real_labels_are_refused_in_one_line(
    content: str | None, message: str, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate_imagenet, 'build_model', lambda *_: always(0, 3))
    if content is not None:
        (tmp_path / 'real.json').write_bytes(content.encode(errors='surrogateescape'))
    with pytest.raises(UserError, match=message) as error:
        run(monkeypatch, '--data', numbered, '--real-labels', tmp_path / 'real.json')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['cat.JPEG', 'ILSVRC2012_val_00000000.JPEG', 'ILSVRC2012_val_00050001.JPEG'])
def test_images_without_a_number_have_no_real_labels(name: str) -> None:
    with pytest.raises(UserError, match=f'{name} has no number from 1 to 50000'):
        validate_imagenet.read_real_labels('', ['ILSVRC2012_val_00000001.JPEG', name], 1000)


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
