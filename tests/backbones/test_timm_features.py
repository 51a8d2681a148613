"""Feature maps in timm: those of the stages, one more behind them, and how far they go down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from families import Family, each_family
from torch import nn

X = torch.zeros(1, 3, 65, 98)


def create(family: Family, **settings: Any) -> nn.Module:
    """A small model's maps, by timm's factory."""
    torch.manual_seed(0)
    name = {'CvT': 'cvt_13', 'CMT': 'cmt_s'}[family.name]
    return timm.create_model(name, **(dict(arch=family.tiny, features_only=True) | settings))


@each_family
def test_a_map_behind_the_last_stage(family: Family) -> None:
    last = family.num_stages
    model = create(family, out_indices=range(last + 1)).train()
    maps = model(X + torch.rand_like(X))
    alone = create(family)
    assert [(*m.shape[1:],) for m in maps[:-1]] == [(*m.shape[1:],) for m in alone(X)]
    assert maps[-1].shape[2:] == tuple((side + 1) // 2 for side in maps[-2].shape[2:])
    assert all(m.is_contiguous() for m in maps)
    info = model.feature_info
    assert info.channels() == [m.shape[1] for m in maps]
    assert info.reduction() == [*alone.feature_info.reduction(), 2 * alone.feature_info.reduction()[-1]]
    sum(m.sum() for m in maps).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        (only,) = create(family, out_indices=[last]).eval()(X)
        torch.testing.assert_close(only, create(family, out_indices=range(last + 1)).eval()(X)[-1])
    with pytest.raises(AssertionError, match='out of range'):
        create(family, out_indices=[last + 1])


@each_family
def test_without_indices_there_are_the_maps_of_all_stages_and_no_more(family: Family) -> None:
    model = create(family, arch=family.small)
    assert model.feature_info.channels() == list(family.small['embed_dims'])
    assert not hasattr(model.model, 'downsample')


@each_family
def test_an_output_stride_is_kept_to_or_refused(family: Family) -> None:
    last = 2 ** (family.num_stages + 1)
    for stride in (last, 2 * last):
        model = create(family, out_indices=range(family.num_stages + 1), output_stride=stride).eval()
        maps = model(X)
        assert model.feature_info.reduction()[-1] == stride
        assert (maps[-1].shape == maps[-2].shape) == (stride == last)
    assert create(family, output_stride=8, out_indices=(0, 1)).feature_info.reduction() == [4, 8]
    assert create(family, features_only=False, output_stride=last)(X.expand(2, -1, -1, -1)).shape == (2, 1000)
    for settings in (dict(), dict(features_only=False), dict(out_indices=[family.num_stages])):
        with pytest.raises(
            ValueError, match=rf'^output_stride must be at least {last}, .* got {last // 2}: .*$'
        ) as error:
            create(family, output_stride=last // 2, **settings)
        assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='output_stride must be a positive integer'):
        create(family, output_stride='16')


@each_family
def test_files_load_with_a_map_behind_the_last_stage_or_without(family: Family, tmp_path: Path) -> None:
    indices = range(family.num_stages + 1)
    whole = create(family, features_only=False)
    torch.save(whole.state_dict(), tmp_path / 'whole.pth')
    model = create(family, out_indices=indices, checkpoint_path=str(tmp_path / 'whole.pth'))
    state = model.state_dict()
    for name, tensor in whole.stages.state_dict().items():
        assert torch.equal(state[f'model.stages.{name}'], tensor)
    backbone = family.build(out_indices=indices)
    torch.save(backbone.state_dict(), tmp_path / 'backbone.pth')
    model = create(family, out_indices=indices, checkpoint_path=str(tmp_path / 'backbone.pth'))
    assert torch.equal(model.model.downsample.proj.weight, backbone.downsample.proj.weight)
    other = create(family, out_indices=indices)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values()))
