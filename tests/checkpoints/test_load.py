from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import DATA, TINY, Classifier, weights
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from torch import Tensor

from cvt_dense import CvT, CvTTrunk
from cvt_dense.checkpoints import LoadReport, load_pretrained, read_checkpoint
from cvt_dense.errors import CheckpointError


@pytest.fixture
def official() -> dict[str, Tensor]:
    return weights(Classifier(TINY, 10))


def saved(tmp_path: Path, content: object) -> str:
    torch.save(content, tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth')


def refusal(model: CvTTrunk, checkpoint: str) -> str:
    """The message with which a checkpoint is refused; the model must be left as it was."""
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_pretrained(model, checkpoint)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert checkpoint in str(error.value)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_every_tensor_of_the_trunk_is_loaded(tmp_path: Path, official: dict[str, Tensor]) -> None:
    model = CvTTrunk(TINY)
    path = saved(tmp_path, official)
    report = load_pretrained(model, path)
    assert all(torch.equal(tensor, official[key]) for key, tensor in model.state_dict().items())
    count = len(model.state_dict())
    assert report == LoadReport(path, 'official', count, ('head', 'norm'))
    assert str(report) == (
        f'loaded {count} tensors of the trunk from {path} (official format); not needed here: head, norm'
    )


def test_without_left_overs_the_report_ends_there(tmp_path: Path) -> None:
    save_file(weights(CvTTrunk(TINY)), tmp_path / 'a.safetensors')
    report = load_pretrained(CvTTrunk(TINY), str(tmp_path / 'a.safetensors'))
    assert report.left_over == ()
    assert str(report).endswith('a.safetensors (official format)')


def test_a_model_that_transformers_saved_is_loaded(tmp_path: Path) -> None:
    transformers = pytest.importorskip('transformers')
    arch = TINY | dict(depths=(1, 2, 3))
    config = transformers.CvtConfig(
        embed_dim=list(arch['embed_dims']), num_heads=list(arch['num_heads']), depth=list(arch['depths'])
    )
    theirs = transformers.CvtForImageClassification(config)
    theirs.save_pretrained(tmp_path)
    model = CvT(arch)
    report = load_pretrained(model, str(tmp_path / 'model.safetensors'))
    assert (report.format, report.left_over) == ('transformers', ('head', 'norm'))
    assert torch.equal(model.stage2.cls_token, theirs.cvt.encoder.stages[2].cls_token)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_models(tmp_path: Path, official: dict[str, Tensor], dtype: torch.dtype) -> None:
    model = CvTTrunk(TINY)
    converted = {key: t.to(dtype) if t.is_floating_point() else t for key, t in official.items()}
    load_pretrained(model, saved(tmp_path, converted))
    for key, tensor in model.state_dict().items():
        assert tensor.dtype in (torch.float32, torch.long)
        assert torch.equal(tensor, converted[key].to(tensor.dtype)), key


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path, official: dict[str, Tensor]) -> None:
    old = {key: tensor for key, tensor in official.items() if not key.endswith('num_batches_tracked')}
    assert len(old) < len(official)
    model = CvTTrunk(TINY)
    load_pretrained(model, saved(tmp_path, old))
    assert torch.equal(model.stage0.blocks[0].norm1.weight, official['stage0.blocks.0.norm1.weight'])


def test_a_missing_tensor_is_named(tmp_path: Path, official: dict[str, Tensor]) -> None:
    del official['stage2.cls_token']
    message = refusal(CvTTrunk(TINY), saved(tmp_path, official))
    assert message.endswith('does not fit the model: 1 missing (stage2.cls_token)')


def test_of_many_missing_tensors_the_first_are_named(tmp_path: Path, official: dict[str, Tensor]) -> None:
    kept = {key: tensor for key, tensor in official.items() if not key.startswith('stage1.blocks.1.attn.conv_proj_')}
    message = refusal(CvTTrunk(TINY), saved(tmp_path, kept))
    first = 'stage1.blocks.1.attn.conv_proj_q'
    assert f'15 missing ({first}.conv.weight, {first}.bn.weight, {first}.bn.bias, …)' in message


@pytest.mark.parametrize('shape', [(17, 3, 7, 7), (16, 3, 7), (0,), ()])
@pytest.mark.parametrize('key', ['stage0.patch_embed.proj.weight', 'stage1.blocks.0.mlp.fc1.weight'])
def test_a_misshapen_tensor_is_named_with_both_shapes(
    tmp_path: Path, official: dict[str, Tensor], key: str, shape: tuple[int, ...]
) -> None:
    expected = list(official[key].shape)
    message = refusal(CvTTrunk(TINY), saved(tmp_path, official | {key: torch.zeros(shape)}))
    assert message.endswith(f': 1 misshapen ({key} is {list(shape)}, not {expected})')


def test_a_surplus_tensor_is_named(tmp_path: Path, official: dict[str, Tensor]) -> None:
    message = refusal(CvTTrunk(TINY), saved(tmp_path, official | {'stage0.blocks.0.gamma': torch.zeros(16)}))
    assert message.endswith(': 1 not in the model (stage0.blocks.0.gamma)')


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, official: dict[str, Tensor], value: float) -> None:
    key = 'stage1.blocks.0.attn.conv_proj_k.bn.running_var'
    official[key][3] = value
    assert refusal(CvTTrunk(TINY), saved(tmp_path, official)).endswith(f': 1 not finite ({key})')


def test_all_kinds_of_misfit_are_told_at_once(tmp_path: Path, official: dict[str, Tensor]) -> None:
    del official['stage2.cls_token']
    official |= {'stage0.patch_embed.proj.bias': torch.zeros(3), 'stage1.extra': torch.zeros(1)}
    official['stage0.patch_embed.norm.bias'][0] = torch.nan
    message = refusal(CvTTrunk(TINY), saved(tmp_path, official))
    assert [kind in message for kind in ('1 missing', '1 misshapen', '1 not in the model', '1 not finite')] == [
        True
    ] * 4


def test_what_is_not_needed_need_not_be_finite(tmp_path: Path, official: dict[str, Tensor]) -> None:
    official['head.weight'].fill_(torch.nan)
    load_pretrained(CvTTrunk(TINY), saved(tmp_path, official))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {'state_dict': {'layer1.0.conv1.weight': torch.zeros(1)}})
    assert 'holds no CvT weights of any known format (official, transformers, timm)' in refusal(CvTTrunk(TINY), path)


def test_nothing_below_the_prefix_is_said_with_the_prefix(tmp_path: Path, official: dict[str, Tensor]) -> None:
    path = saved(tmp_path, official)
    with pytest.raises(CheckpointError, match="holds no CvT weights below 'student'"):
        load_pretrained(CvTTrunk(TINY), path, 'student')
    path = saved(tmp_path, {f'student.{key}': tensor for key, tensor in official.items()})
    load_pretrained(CvTTrunk(TINY), path, 'student')


def cvt_13() -> dict[str, Tensor]:
    return dict(CvTTrunk('cvt-13').state_dict())


def cvt_21() -> dict[str, Tensor]:
    """The authors' names and shapes; all values share one number, in memory and in the file."""
    shapes = json.loads((DATA / 'official_cvt_21_keys.json').read_text())
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def cvt_w24() -> dict[str, Tensor]:
    """The names of W24, and the shapes of its token embeddings only."""
    names = CvTTrunk(dict(embed_dims=(4, 8, 12), num_heads=(1, 2, 3), depths=(2, 2, 20))).state_dict()
    embeddings = zip(range(3), [(192, 3, 7, 7), (768, 192, 3, 3), (1024, 768, 3, 3)])
    return dict(names) | {f'stage{i}.patch_embed.proj.weight': torch.zeros(()).expand(s) for i, s in embeddings}


@pytest.mark.parametrize(
    ('file', 'arch', 'hint'),
    [
        (cvt_13, 'cvt-21', "these are cvt-13's; the config asks for cvt-21"),
        (cvt_21, 'cvt-13', "these are cvt-21's; the config asks for cvt-13"),
        (cvt_w24, 'cvt-13', "these are cvt-w24's; the config asks for cvt-13"),
        (cvt_13, TINY, "these are cvt-13's; the config asks for another architecture"),
    ],
)
def test_weights_of_another_variant_are_called_by_their_name(tmp_path: Path, file: Any, arch: Any, hint: str) -> None:
    assert f'does not fit the model ({hint}): ' in refusal(CvTTrunk(arch), saved(tmp_path, file()))


def test_weights_of_an_unknown_variant_are_not_given_a_name(tmp_path: Path, official: dict[str, Tensor]) -> None:
    wider = dict(embed_dims=(32, 48, 96), num_heads=(1, 3, 6), depths=(1, 2, 2))
    assert 'these are' not in refusal(CvTTrunk(wider), saved(tmp_path, official))


def test_official_cvt_21_names_cover_cvt_21(tmp_path: Path) -> None:
    report = load_pretrained(CvTTrunk('cvt-21'), saved(tmp_path, cvt_21()))
    assert report.left_over == ('head', 'norm')


def test_stages_that_are_not_built_are_left_over(tmp_path: Path, official: dict[str, Tensor]) -> None:
    model = CvT(TINY, out_indices=(0, 1), out_norm=False)
    report = load_pretrained(model, saved(tmp_path, official))
    assert report.left_over == ('head', 'norm', 'stage2')
    assert report.loaded == len(model.state_dict())


def test_a_stage_that_the_architecture_does_not_have_is_refused(tmp_path: Path, official: dict[str, Tensor]) -> None:
    path = saved(tmp_path, official | {'stage3.patch_embed.proj.weight': torch.zeros(8, 96, 3, 3)})
    assert 'stage3.patch_embed.proj.weight' in refusal(CvTTrunk(TINY), path)


def test_output_norms_are_taken_where_the_file_has_them(tmp_path: Path) -> None:
    trained = CvT(TINY)
    content = weights(trained)
    path = saved(tmp_path, {'state_dict': {f'backbone.{key}': tensor for key, tensor in content.items()}})
    model = CvT(TINY)
    report = load_pretrained(model, path)
    assert report.left_over == ()
    for i in range(3):
        assert torch.equal(model.state_dict()[f'norm{i}.weight'], content[f'norm{i}.weight'])
    report = load_pretrained(CvT(TINY, out_indices=(2,)), path)
    assert report.left_over == ('norm0', 'norm1')
    assert load_pretrained(CvTTrunk(TINY), path).left_over == ('norm0', 'norm1', 'norm2')


def test_output_norms_stay_fresh_where_the_file_has_none(tmp_path: Path, official: dict[str, Tensor]) -> None:
    model = CvT(TINY)
    load_pretrained(model, saved(tmp_path, official))
    assert all((getattr(model, f'norm{i}').weight == 1).all() for i in range(3))


def test_a_misshapen_output_norm_is_refused(tmp_path: Path, official: dict[str, Tensor]) -> None:
    path = saved(tmp_path, official | {'norm0.weight': torch.ones(5)})
    assert 'norm0.weight is [5], not [16]' in refusal(CvT(TINY), path)


def test_checkpoints_of_training_runs_are_read(tmp_path: Path) -> None:
    history = HistoryBuffer([1.0], [1])
    torch.save(dict(state_dict=dict(a=torch.ones(1)), message_hub=history, lr=np.float64(0.1)), tmp_path / 'a.pth')
    assert read_checkpoint(str(tmp_path / 'a.pth'))['state_dict']['a'] == 1
    with pytest.raises(CheckpointError, match='neither a file nor a known name'):
        read_checkpoint(str(tmp_path / 'b.pth'))
