"""Other people's heads: one config of each family of the toolkits, trained one step and tried on CvT and on CMT."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from mmengine.config import Config
from toolkit_configs import FAMILIES, Family, adapted, build, folder, predict, train_step, wrong_strides

from cvt_dense.engine.map_use import use_of_maps

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _registered() -> None:
    for toolkit in ('mmdet', 'mmseg'):
        utils = pytest.importorskip(f'{toolkit}.utils')
        utils.register_all_modules(init_default_scope=False)


def assert_stops(pattern: str, function: Callable[[], object]) -> None:
    with pytest.raises(Exception) as stopped:
        function()
    error = f'{stopped.type.__name__}: {stopped.value} in {stopped.traceback[-1].path.name}'
    assert re.search(pattern, error), error


CASES = [
    pytest.param(family, backbone, id=f'{family} on {backbone}') for backbone in ('CvT', 'CMT') for family in FAMILIES
]


@pytest.mark.parametrize(('family', 'backbone'), CASES)
def test_a_family_works_on_our_backbones(family: Family, backbone: str) -> None:
    if folder(family.toolkit) is None:
        pytest.skip(f'{family.toolkit} is installed without its configs')
    if not (folder(family.toolkit) / family.config).is_file():
        pytest.skip(f'this {family.toolkit} has no {family.config}')
    if family.needs:
        pytest.importorskip(family.needs)
    if family.error is not None:
        assert_stops(family.error, lambda: train_step(family, build(family, backbone)))
        return
    model = build(family, backbone)
    with wrong_strides(family, model) as wrong:
        loss = train_step(family, model)
    assert loss.isfinite()
    assert wrong == []
    without = [name for name, p in model.backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    # What is said before a run is what the run does.
    use = use_of_maps(Config(dict(model=adapted(family, backbone), default_scope=family.toolkit)), 'model')
    assert use.wrong == []
    for index in use.unread:
        norm = getattr(model.backbone, f'norm{index}', None) or model.backbone.downsample
        assert not any(p.grad.any() for p in norm.parameters()), index
    if family.prediction_error is not None:
        assert_stops(family.prediction_error, lambda: predict(family, model))
        return
    (result,) = predict(family, model)
    assert any(hasattr(result, name) for name in ('pred_instances', 'pred_panoptic_seg', 'pred_sem_seg'))
