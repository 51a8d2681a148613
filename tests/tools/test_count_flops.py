from __future__ import annotations

import sys
from pathlib import Path

import count_flops
import pytest
import torch
import yaml
from mmengine.config import Config
from paths import ROOT
from torch import nn

from cvt_dense.errors import UserError

SMALL = ROOT / 'configs/upernet_cvttiny_shapes.py'


def test_a_config_is_counted_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'metafile.yml'
    monkeypatch.setattr(sys, 'argv', ['count_flops.py', str(SMALL), '--metafile', str(out)])
    count_flops.main()
    index = yaml.safe_load(out.read_text())
    (model,) = index['Models']
    assert model['Name'] == SMALL.stem
    assert model['In Collection'] == 'UperNet'
    assert model['Metadata']['Training Data'] == 'shapes'
    assert model['Metadata']['Input Size'] == '160x160'
    assert model['Results'] == []
    assert index['Collections'] == [
        {'Name': 'UperNet', 'Paper': {'Title': 'UperNet', 'URL': 'https://arxiv.org/abs/1807.10221'}}
    ]
    assert f'{model["Metadata"]["Parameters"] / 1e6:.1f}' in capsys.readouterr().out


def test_operations_grow_with_the_image_and_parameters_do_not() -> None:
    small, large = (count_flops.count(Config.fromfile(SMALL), (side, side)) for side in (64, 128))
    assert small[0] == large[0]
    assert 4 <= large[1] / small[1] < 6  # attention grows faster than the pixels


def test_a_missing_config_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['count_flops.py', 'configs/nope.py'])
    with pytest.raises(UserError, match=r'config configs/nope.py does not exist'):
        count_flops.main()


def test_masks_are_counted_for_the_best_boxes_alone() -> None:
    head = nn.Conv2d(4, 4, 3, padding=1)
    counted = count_flops._for_the_best_boxes(head.forward)
    regions = torch.randn(250, 4, 14, 14)
    masks = counted(regions)
    assert masks.shape == (250, 4, 14, 14)
    torch.testing.assert_close(masks[:100], head(regions[:100]))
    assert not masks[100:].any()
    assert torch.equal(counted(regions[:7]), head(regions[:7]))
