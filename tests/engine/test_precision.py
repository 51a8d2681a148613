from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, DefaultScope
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


def test_gradients_of_several_steps_are_accumulated_without_synchronizing() -> None:
    class Replicated(nn.Linear):
        waiting = 0

        @contextmanager
        def no_sync(self) -> Iterator[None]:
            self.waiting += 1
            yield

    model = Replicated(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(dict(type='BFloat16OptimWrapper', optimizer=optimizer, accumulative_counts=2))
    for _ in range(4):
        with wrapper.optim_context(model):
            loss = model(torch.randn(2, 4)).float().square().mean()
        wrapper.update_params(loss)
    assert model.waiting == 2


def extractor() -> SingleRoIExtractor:
    return SingleRoIExtractor(dict(type='RoIAlign', output_size=7, sampling_ratio=0), 8, [4])


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16])
def test_regions_are_read_in_float32_where_boxes_would_lose_pixels(low: torch.dtype) -> None:
    model = nn.ModuleDict(dict(extractor=extractor(), other=nn.Linear(2, 2)))
    features = [torch.randn(1, 8, 64, 64)]
    rois = torch.tensor([[0.0, 101.3, 33.7, 215.9, 190.1]])
    expected = extractor()([features[0].to(low).float()], rois)
    assert keep_operators_in_float32(model) == ['extractor']
    with torch.autocast('cpu', torch.bfloat16):
        regions = model['extractor']([features[0].to(low)], rois)
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
    ).eval()
    query = torch.randn(1, 16, 32).bfloat16()
    arguments = dict(
        query=query.float(),
        value=query.float(),
        reference_points=torch.rand(1, 16, 1, 2),
        spatial_shapes=torch.tensor([[4, 4]]),
        level_start_index=torch.tensor([0]),
    )
    expected = model['attention'](**arguments)
    assert keep_operators_in_float32(model) == ['attention']
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(model['attention'](**arguments | dict(query=query, value=query)), expected)


def heads() -> nn.ModuleDict:
    with DefaultScope.overwrite_default_scope('mmdet'):  # an earlier test's run may have left another one
        boxes = Shared2FCBBoxHead(in_channels=8, fc_out_channels=16, roi_feat_size=7, num_classes=2)
        return nn.ModuleDict(dict(boxes=boxes, proposals=RPNHead(in_channels=8)))


def test_heads_compute_in_bfloat16_and_return_boxes_in_float32() -> None:
    model = heads()
    assert keep_operators_in_float32(model) == ['boxes', 'proposals']
    within = []
    for layer in (model['boxes'].fc_reg, model['proposals'].rpn_reg):
        layer.register_forward_hook(lambda module, inputs, output: within.append(output.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        assert [x.dtype for x in model['boxes'](torch.randn(3, 8, 7, 7))] == [torch.float32] * 2
        (scores,), (boxes,) = model['proposals']([torch.randn(1, 8, 4, 4)])
    assert scores.dtype == boxes.dtype == torch.float32
    assert within == [torch.bfloat16] * 2


def test_the_hook_wraps_the_modules_of_a_runs_model() -> None:
    model = heads()
    HOOKS.build(dict(type='Float32OperatorsHook')).before_train(SimpleNamespace(model=model))
    with torch.autocast('cpu', torch.bfloat16):
        assert model['boxes'](torch.randn(3, 8, 7, 7))[1].dtype == torch.float32
