from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
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


def attention() -> MultiScaleDeformableAttention:
    return MultiScaleDeformableAttention(32, num_heads=4, num_levels=1, batch_first=True).eval()


def attend(model: nn.Module) -> torch.Tensor:
    query = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        return model(
            query=query,
            value=query,
            reference_points=torch.full((1, 16, 1, 2), 0.5),
            spatial_shapes=torch.tensor([[4, 4]]),
            level_start_index=torch.tensor([0]),
        )


@pytest.mark.parametrize('by', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_in_float32_with_weights_of_its_own(by: Callable[[nn.Module], nn.Module]) -> None:
    """As the average of weights (EMA) is one."""
    model = nn.ModuleDict(dict(attention=attention(), boxes=heads()['boxes']))
    keep_operators_in_float32(model)
    regions = torch.randn(3, 8, 7, 7)
    before = attend(model['attention']), model['boxes'](regions)[1]
    copied = by(model)
    assert torch.equal(attend(copied['attention']), before[0])
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.1)
    with torch.autocast('cpu', torch.bfloat16):
        boxes = copied['boxes'](regions)[1]
    assert boxes.dtype == torch.float32
    assert not torch.allclose(boxes, before[1], atol=1e-2)
    assert not torch.allclose(attend(copied['attention']), before[0], atol=1e-2)
    assert torch.equal(attend(model['attention']), before[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied['boxes'](regions)[1], boxes, atol=0.05, rtol=0.05)


def test_a_second_call_changes_nothing() -> None:
    model = nn.ModuleDict(dict(extractor=extractor()))
    names = keep_operators_in_float32(model)
    forward = model['extractor'].forward
    assert keep_operators_in_float32(model) == names
    assert model['extractor'].forward is forward


def test_a_forward_that_others_put_there_is_called() -> None:
    model = nn.ModuleDict(dict(attention=attention()))
    alone = copy.deepcopy(model)
    keep_operators_in_float32(alone)
    expected = attend(alone['attention'])
    plain = model['attention'].forward
    model['attention'].forward = lambda *args, **kwargs: plain(*args, **kwargs) + 1
    keep_operators_in_float32(model)
    torch.testing.assert_close(attend(model['attention']), expected + 1)


def test_the_hook_wraps_the_modules_of_a_runs_model() -> None:
    model = heads()
    HOOKS.build(dict(type='Float32OperatorsHook')).before_train(SimpleNamespace(model=model))
    with torch.autocast('cpu', torch.bfloat16):
        assert model['boxes'](torch.randn(3, 8, 7, 7))[1].dtype == torch.float32
