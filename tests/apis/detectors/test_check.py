from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_detectors import small_detector

from cvt_dense.apis.detectors import check as checking
from cvt_dense.apis.detectors.check import check
from cvt_dense.apis.detectors.detections import Detections
from cvt_dense.apis.detectors.files import as_function
from cvt_dense.errors import UserError

Change = Callable[[Detections], Detections]


@pytest.fixture(scope='module')
def detector() -> torch.nn.Module:
    return small_detector()


@pytest.fixture(autouse=True)
def _one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, 'CHECKED_SIZES', [(128, 131)])


def exported(detector: torch.nn.Module, change: Change) -> checking.Exported:
    """The detector as a function, for a file; what it finds is changed."""
    function = as_function(detector)
    own = function.score_thr.item()

    def run(image: torch.Tensor, threshold: float | None) -> Detections:
        function.score_thr.fill_(own if threshold is None else threshold)
        with torch.no_grad():
            return change(Detections.of(function(image)))

    return run


def _without(found: Detections, index: int) -> Detections:
    return Detections(*(torch.cat((x[:index], x[index + 1 :])) for x in found))


def _doubled(found: Detections) -> Detections:
    return Detections(*(torch.cat((x, x[-1:])) for x in found))


def _shifted(found: Detections) -> Detections:
    return found._replace(boxes=found.boxes + 0.5)


def _relabeled(found: Detections) -> Detections:
    return found._replace(labels=(found.labels + 1) % 5)


def _with_coarse_masks(found: Detections) -> Detections:
    return found._replace(masks=found.masks.roll(1, dims=2))


def test_the_detector_itself_passes(detector: torch.nn.Module) -> None:
    check(detector, exported(detector, lambda found: found))


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        (_shifted, 'it lacks'),
        (_relabeled, 'it lacks'),
        (_with_coarse_masks, 'it lacks'),
        (lambda found: found._replace(scores=found.scores * 0.99), 'it lacks'),
        (lambda found: found if len(found.scores) == 0 else _without(found, 0), 'it lacks 1 of'),
        (lambda found: found if len(found.scores) == 0 else _doubled(found), 'it has 1 detections that'),
        (lambda found: Detections(*(x.flip(0) for x in found)), 'scores are not in falling order'),
        (lambda found: found._replace(labels=found.labels.int()), 'labels of torch.int32'),
        (
            lambda found: found._replace(masks=found.masks if len(found.scores) else found.masks[:, 1:]),
            'where there is',
        ),
    ],
)
def test_what_finds_something_else_is_refused(detector: torch.nn.Module, change: Change, line: str) -> None:
    with pytest.raises(UserError, match=rf'on an image of 128x131, and was not kept: .*{line}'):
        check(detector, exported(detector, change))


def test_another_threshold_is_seen(detector: torch.nn.Module) -> None:
    run = exported(detector, lambda found: found)
    scores = run(checking.draw(0, 128, 131), None).scores
    other = scores.median().item()
    with pytest.raises(UserError, match='it lacks'):
        check(detector, lambda image, threshold: run(image, other if threshold is None else threshold))


def test_a_detector_that_finds_nothing_twice_is_refused(
    detector: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, 'NOISE', 200)
    with pytest.raises(UserError, match=r'cannot be compared, and was not kept: of \d+ detections'):
        check(detector, exported(detector, lambda found: found))
