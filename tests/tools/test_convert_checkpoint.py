from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import convert_checkpoint
import pytest
import torch
from golden import TINY, Classifier, CMTClassifier, weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from cvt_dense import CheckpointError, CvT
from cvt_dense.checkpoints.formats import FORMATS, to_trunk
from cvt_dense.checkpoints.load import load_pretrained
from cvt_dense.errors import UserError

SUFFIXES = {'official': '.pth', 'hf': '.safetensors', 'timm': '.bin'}


@pytest.fixture(scope='module')
def cvt_13() -> dict[str, Tensor]:
    return weights(Classifier('cvt-13', 7))


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, arguments)])
    convert_checkpoint.main()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize('start', SUFFIXES)
def test_a_round_through_all_formats_changes_nothing(
    start: str,
    cvt_13: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / 'in.pth'
    torch.save(FORMATS[convert_checkpoint.TARGETS[start]].from_trunk(cvt_13), source)
    for target, suffix in SUFFIXES.items():
        out = tmp_path / 'new folder' / f'{target}{suffix}'
        convert(monkeypatch, source, out, '--to', target)
        printed = capsys.readouterr().out
        assert f'({convert_checkpoint.TARGETS[target]} format), {len(cvt_13)} tensors' in printed
        assert 'ran cvt-13 on an image before and after: off by ' in printed
        content = load_file(out) if suffix == '.safetensors' else torch.load(out)
        tensors, found = to_trunk(content)
        assert found == convert_checkpoint.TARGETS[target]
        assert same(tensors, cvt_13)
        assert [path.name for path in out.parent.glob('.*')] == []
        source = out


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CvT]:
    """A detector's checkpoint, and its backbone."""
    model = CvT('cvt-13').eval()
    tensors = {f'backbone.{key}': tensor for key, tensor in model.state_dict().items()}
    path = tmp_path_factory.mktemp('detector') / 'epoch_1.pth'
    torch.save(dict(meta={}, state_dict=tensors | {'neck.weight': torch.ones(1)}), path)
    return path, model


def printed_call(text: str) -> Any:
    """The model that the call which the tool printed makes."""
    (line,) = [line for line in text.splitlines() if line.startswith('to load it: ')]
    names: dict[str, Any] = {}
    exec(line.removeprefix('to load it: '), names)
    return names['model'].eval()


def weights_of(model: Any) -> dict[str, Tensor]:
    """A model's parameters and buffers under the trunk's names."""
    return to_trunk({key.removeprefix('model.'): tensor for key, tensor in model.state_dict().items()})[0]


@pytest.mark.parametrize(
    ('target', 'name'), [('official', 'x.safetensors'), ('timm', "it's.safetensors"), ('timm', 'x.pth'), ('hf', 'x')]
)
def test_the_backbone_of_a_detector_loads_by_the_call_that_is_printed(
    target: str,
    name: str,
    detector: tuple[Path, CvT],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if target == 'hf':
        pytest.importorskip('transformers')
    source, model = detector
    convert(monkeypatch, source, tmp_path / name, '--to', target)
    printed = capsys.readouterr().out
    assert 'ran cvt-13 on an image' in printed
    norms = 'left out, since no model of {} has them: norm0, norm1, norm2'
    assert (norms.format(convert_checkpoint.TARGETS[target]) in printed) == (target != 'official')
    expected = {
        key: tensor for key, tensor in model.state_dict().items() if target == 'official' or key.startswith('stage')
    }
    assert same(weights_of(printed_call(printed)), expected)


@pytest.mark.parametrize(('target', 'name'), [('official', 'x.pth'), ('timm', 'x.safetensors'), ('hf', 'x')])
def test_a_classifier_loads_by_the_call_that_is_printed(
    target: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if target == 'hf':
        pytest.importorskip('transformers')
    classifier = weights(Classifier('cvt-13', 5))
    stem = 'stage0.patch_embed.proj.weight'
    classifier[stem] = classifier[stem][:, :2].contiguous()  # for images of two channels
    torch.save(classifier, tmp_path / 'in.pth')
    convert(monkeypatch, tmp_path / 'in.pth', tmp_path / name, '--to', target)
    model = printed_call(capsys.readouterr().out)
    expected = {key: t for key, t in classifier.items() if target != 'official' or key.startswith('stage')}
    loaded = weights_of(model)
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())
    if target != 'official':
        outputs = model(torch.zeros(1, 2, 32, 32))
        assert getattr(outputs, 'logits', outputs).shape == (1, 5)


def test_a_file_for_transformers_has_no_short_call(
    detector: tuple[Path, CvT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(monkeypatch, detector[0], tmp_path / 'x.bin', '--to', 'hf')
    assert capsys.readouterr().out.splitlines()[-1] == (
        'from_pretrained of transformers takes a folder: OUT without a suffix'
    )


def test_a_folder_keeps_the_names_of_classes_and_what_else_is_in_it(
    cvt_13: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    save_file(FORMATS['transformers'].from_trunk(cvt_13), source / 'model.safetensors')
    names = {str(index): f'kind {index}' for index in range(7)}
    (source / 'config.json').write_text(json.dumps(dict(id2label=names)))
    out.mkdir()
    convert(monkeypatch, source, out, '--to', 'hf', '--half')
    (out / 'README.md').write_text('mine')
    config = json.loads((out / 'config.json').read_text())
    assert config['id2label'] == names
    assert config['label2id'] == {name: int(index) for index, name in names.items()}
    assert (config['depth'], config['torch_dtype']) == ([1, 2, 10], 'float16')
    with pytest.raises(UserError, match='exists; overwrite it with --force'):
        convert(monkeypatch, source, out, '--to', 'hf')
    convert(monkeypatch, source, out, '--to', 'hf', '--force')
    assert sorted(path.name for path in out.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    assert json.loads((out / 'config.json').read_text())['torch_dtype'] == 'float32'


def test_classes_of_published_weights_are_those_of_imagenet() -> None:
    labels = convert_checkpoint.labels_of('cvt-13-224x224-in1k', 1000)
    assert labels[0].startswith('tench')
    assert convert_checkpoint.labels_of('cvt-13-224x224-in1k', 10) == []
    assert convert_checkpoint.labels_of('epoch_1.pth', 1000) == []


def test_a_folder_needs_a_known_variant_and_a_name_that_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(weights(Classifier(TINY, 10)), tmp_path / 'in.pth')
    with pytest.raises(UserError, match="no known variant, so transformers' config is not known: write a file"):
        convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out', '--to', 'hf')
    (tmp_path / 'x.pth').mkdir()
    with pytest.raises(UserError, match=r'x\.pth is a folder; choose another name'):
        convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'x.pth', '--force')


def test_half_precision_stays_half_precision_and_can_be_asked_for(
    cvt_13: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in cvt_13.items()}
    for tensors, options in ((half, ()), (cvt_13, ('--half',))):
        save_file(tensors, tmp_path / 'in.safetensors')
        convert(
            monkeypatch, tmp_path / 'in.safetensors', tmp_path / 'out.safetensors', '--to', 'hf', '--force', *options
        )
        assert same(to_trunk(load_file(tmp_path / 'out.safetensors'))[0], half)
        assert 'ran cvt-13 on an image before and after' in capsys.readouterr().out


def test_an_unknown_variant_is_converted_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights(Classifier(TINY, 10)), tmp_path / 'in.pth')
    convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out.safetensors', '--to', 'timm')
    assert 'no known variant, so no image was run' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('options', 'names', 'parameter'),
    [
        (dict(position='learned', pretrain_size=64), 'position', 'pos_embed.weight'),
        (dict(position='conv', stem_channels=6), 'position, stem_channels', 'stem.conv1.weight'),
        (dict(stem_channels=6), 'stem_channels', 'stem.norm3.running_mean'),
    ],
)
def test_layers_that_transformers_lacks_are_refused_for_it_and_kept_for_timm(
    options: dict[str, Any], names: str, parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = TINY | options
    torch.save(CvT(arch, out_norm=False).state_dict(), tmp_path / 'a.pth')
    with pytest.raises(UserError, match=rf'has other {names} than transformers knows: leave out --to$'):
        convert(monkeypatch, tmp_path / 'a.pth', tmp_path / 'b.safetensors', '--to', 'hf')
    assert not (tmp_path / 'b.safetensors').exists()
    convert(monkeypatch, tmp_path / 'a.pth', tmp_path / 'b.safetensors', '--to', 'timm')
    assert f'stages.0.{parameter}' in load_file(tmp_path / 'b.safetensors')
    model = CvT(arch, out_norm=False)
    load_pretrained(model, str(tmp_path / 'b.safetensors'))
    assert same(model.state_dict(), torch.load(tmp_path / 'a.pth'))


def test_what_is_there_is_overwritten_only_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights(Classifier(TINY, 10)), tmp_path / 'in.pth')
    out = tmp_path / 'out.pth'
    out.write_text('precious')
    with pytest.raises(UserError, match='exists; overwrite it with --force'):
        convert(monkeypatch, tmp_path / 'in.pth', out)
    assert out.read_text() == 'precious'
    convert(monkeypatch, tmp_path / 'in.pth', out, '--force')
    assert torch.load(out)


def test_wrong_names_and_foreign_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r'must end in \.safetensors, \.pth or \.bin; with'):
        convert(monkeypatch, 'in.pth', tmp_path / 'out.onnx')
    with pytest.raises(CheckpointError, match='neither a file nor a known name'):
        convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out.pth')
    torch.save({'conv1.weight': torch.ones(1)}, tmp_path / 'in.pth')
    with pytest.raises(UserError, match='holds no weights of CvT or CMT, of any known format'):
        convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out.pth')


def test_a_file_of_cmt_is_unwrapped_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = weights(CMTClassifier('cmt-ti', 1280, 7, pretrain_size=64))
    torch.save(dict(model=tensors, args=Namespace(lr=0.1)), tmp_path / 'in.pth')
    convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out.safetensors')
    printed = capsys.readouterr().out
    assert 'ran cmt-ti on an image before and after: off by ' in printed
    assert "from cvt_dense import CMT; model = CMT('cmt-ti', pretrain_size=64, init_cfg=" in printed
    assert same(load_file(tmp_path / 'out.safetensors'), tensors)
    convert(monkeypatch, tmp_path / 'out.safetensors', tmp_path / 'timm.pth', '--to', 'timm')
    printed = capsys.readouterr().out
    assert 'ran cmt-ti on an image before and after: off by ' in printed
    assert "timm.create_model('cmt_ti', num_classes=7, img_size=64, checkpoint_path=" in printed
    convert(monkeypatch, tmp_path / 'timm.pth', tmp_path / 'back.pth')
    assert same(torch.load(tmp_path / 'back.pth'), tensors)
    with pytest.raises(UserError, match='is of CMT, which has no hf format: leave out --to'):
        convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out.pth', '--to', 'hf')
    del tensors['relative_pos_b']
    torch.save(tensors, tmp_path / 'in.pth')
    with pytest.raises(CheckpointError, match=r'in.pth is incomplete or damaged: a table of the position bias is miss'):
        convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out.pth')


TINY_7 = TINY | dict(depths=(1, 2, 7))
LOSSES = [
    (arch, *loss)
    for arch in ('cvt-13', TINY_7)
    for loss in (
        ('stage2.blocks.4.', r'missing \(stage2.blocks.4.'),
        ('stage1.', r'parts of stages \[0, 2\] only'),
        ('stage0.patch_embed.proj.weight', 'incomplete'),
        ('stage1.blocks.1.mlp.fc1.bias', r'1 missing \(stage1.blocks.1.mlp.fc1.bias\)'),
    )
]


# A file of the first stages of an unknown architecture has no cls token, so that one cannot be missed.
@pytest.mark.parametrize(
    ('arch', 'lost', 'message'), [*LOSSES, ('cvt-13', 'stage2.cls_token', r'1 missing \(stage2.cls_token\)')]
)
def test_an_incomplete_checkpoint_is_refused(
    arch: Any, lost: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = weights(Classifier(arch, 7))
    torch.save({key: t for key, t in tensors.items() if not key.startswith(lost)}, tmp_path / 'in.pth')
    with pytest.raises(CheckpointError, match=message):
        convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['in.pth']


def swapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names and shapes with the keys' and the values' weights of one block exchanged."""
    names = [key for key in tensors if 'blocks.0' in key or 'layers.0' in key]
    keys = [key for key in names if key.endswith(('proj_k.weight', 'projection_key.weight'))]
    values = [key for key in names if key.endswith(('proj_v.weight', 'projection_value.weight'))]
    assert len(keys) == len(values) == 3
    return tensors | {keys[0]: tensors[values[0]], values[0]: tensors[keys[0]]}


@pytest.mark.parametrize('target', SUFFIXES)
@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda tensors: dict(list(tensors.items())[:-1]), 'lost weights'),
        (swapped, 'changed the outputs by'),
    ],
)
def test_a_wrong_conversion_is_noticed_and_leaves_nothing_behind(
    damage: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    target: str,
    cvt_13: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save(cvt_13, tmp_path / 'in.pth')
    write = convert_checkpoint.write
    monkeypatch.setattr(convert_checkpoint, 'write', lambda tensors, path: write(damage(tensors), path))
    with pytest.raises(CheckpointError, match=message):
        convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out.pth', '--to', target)
    assert [path.name for path in tmp_path.iterdir()] == ['in.pth']
