from __future__ import annotations

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope
from torch import nn

from cvt_dense.engine.precision import keep_operators_in_float32


def test_losses_are_computed_in_bfloat16_and_parameters_stay_in_float32() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(dict(type='BFloat16OptimWrapper', optimizer=optimizer))
    with wrapper.optim_context(model):
        out = model(torch.randn(2, 4))
    assert out.dtype == torch.bfloat16
    before = model.weight.clone()
    wrapper.update_params(out.float().square().mean())
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)
    assert model(torch.randn(2, 4)).dtype == torch.float32


def extractor() -> SingleRoIExtractor:
    return SingleRoIExtractor(dict(type='RoIAlign', output_size=7, sampling_ratio=0), 8, [4])


def test_regions_are_read_in_float32_where_boxes_would_lose_pixels() -> None:
    model = nn.ModuleDict(dict(extractor=extractor(), other=nn.Linear(2, 2)))
    features = [torch.randn(1, 8, 64, 64)]
    rois = torch.tensor([[0.0, 101.3, 33.7, 215.9, 190.1]])
    expected = extractor()([features[0].bfloat16().float()], rois)
    assert keep_operators_in_float32(model) == ['extractor']
    with torch.autocast('cpu', torch.bfloat16):
        regions = model['extractor']([features[0].bfloat16()], rois)
    assert regions.dtype == torch.float32
    torch.testing.assert_close(regions, expected)


def test_gradients_go_back_through_what_stays_in_float32() -> None:
    model = nn.ModuleDict(dict(extractor=extractor()))
    keep_operators_in_float32(model)
    features = torch.randn(1, 8, 16, 16, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        model['extractor']([features.bfloat16()], torch.tensor([[0.0, 4.0, 4.0, 50.0, 40.0]])).sum().backward()
    assert features.grad.abs().sum() > 0


def test_deformable_attention_stays_in_float32() -> None:
    model = nn.ModuleDict(
        dict(attention=MultiScaleDeformableAttention(32, num_heads=4, num_levels=1, batch_first=True))
    )
    assert keep_operators_in_float32(model) == ['attention']
    query = torch.randn(1, 16, 32)
    arguments = dict(
        query=query.bfloat16(),
        value=query.bfloat16(),
        reference_points=torch.rand(1, 16, 1, 2),
        spatial_shapes=torch.tensor([[4, 4]]),
        level_start_index=torch.tensor([0]),
    )
    with torch.autocast('cpu', torch.bfloat16):
        assert model['attention'](**arguments).dtype == torch.float32


def test_heads_return_boxes_in_float32() -> None:
    with DefaultScope.overwrite_default_scope('mmdet'):  # an earlier test's run may have left another one
        head = Shared2FCBBoxHead(in_channels=8, fc_out_channels=16, roi_feat_size=7, num_classes=2)
    model = nn.ModuleDict(dict(head=head))
    assert keep_operators_in_float32(model) == ['head']
    with torch.autocast('cpu', torch.bfloat16):
        assert [x.dtype for x in model['head'](torch.randn(3, 8, 7, 7))] == [torch.float32] * 2
        assert model['head'].fc_cls(torch.randn(1, 16)).dtype == torch.bfloat16
