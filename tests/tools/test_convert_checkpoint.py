from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import convert_checkpoint
import pytest
import torch
from golden import TINY, Classifier, weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from cvt_dense import CheckpointError, CvT
from cvt_dense.checkpoints.formats import FORMATS, to_trunk
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


def test_a_backbone_is_taken_out_of_a_detector_and_has_no_logits_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = CvT('cvt-13')
    detector = {f'backbone.{key}': tensor for key, tensor in model.state_dict().items()}
    torch.save(dict(meta={}, state_dict=detector | {'neck.weight': torch.ones(1)}), tmp_path / 'epoch_1.pth')
    for target in SUFFIXES:
        out = tmp_path / f'{target}.safetensors'
        convert(monkeypatch, tmp_path / 'epoch_1.pth', out, '--to', target)
        assert 'ran cvt-13 on an image' in capsys.readouterr().out
        assert same(to_trunk(load_file(out))[0], dict(model.state_dict()))


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
    with pytest.raises(UserError, match=r'must end in \.safetensors, \.pth or \.bin'):
        convert(monkeypatch, 'in.pth', tmp_path / 'out.onnx')
    with pytest.raises(CheckpointError, match='neither a file nor a known name'):
        convert(monkeypatch, tmp_path / 'in.pth', tmp_path / 'out.pth')
    torch.save({'conv1.weight': torch.ones(1)}, tmp_path / 'in.pth')
    with pytest.raises(UserError, match='holds no CvT weights of any known format'):
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
