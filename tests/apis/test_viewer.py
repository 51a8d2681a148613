"""What the page of tools/app.py shows, without the page: tests/browser has that."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from torch import nn
from untrained import save_untrained

from cvt_dense import CvTTrunk
from cvt_dense.apis import Predictor, Skipped, viewer
from cvt_dense.apis.panels import attention_panels, circled, likeness_panels, map_panels, plain_picture
from cvt_dense.apis.viewer import Viewer
from cvt_dense.engine.config import load_config

DETECTION = ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'
SEGMENTATION = ROOT / 'configs/upernet_cvttiny_shapes.py'


def predictor_of(config: Path, folder: Path) -> Predictor:
    cfg = load_config(str(config), {'model.test_cfg.rcnn.max_per_img': 9} if config == DETECTION else None)
    return Predictor(cfg, str(save_untrained(config, folder / 'untrained.pth')), torch.device('cpu'))


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor_of(DETECTION, tmp_path_factory.mktemp('detector'))


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor_of(SEGMENTATION, tmp_path_factory.mktemp('segmentor'))


def write(path: Path, width: int = 150, height: int = 100, mode: str = 'RGB', **settings: Any) -> Path:
    """Write a picture of coloured blocks."""
    blocks = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).convert(mode)
    picture.save(path, **settings)
    return path


def test_objects_are_those_of_the_model_from_a_score_on(detector: Predictor, tmp_path: Path) -> None:
    path = write(tmp_path / 'x.png')
    view = Viewer(detector).open(path)
    (found,) = detector.predict([detector.load(path, 1, 'x')])
    threshold = float(np.sort(found.scores)[3:5].mean())
    shown = found.from_score(threshold)
    expected = detector.painter.draw_instances(view.image, shown)
    assert np.array_equal(Viewer(detector).draw(view, threshold), expected)
    rows = Viewer(detector).rows(view, threshold)
    assert len(rows) == len(shown.scores) == 5
    for row, score, box in zip(rows, shown.scores, shown.boxes, strict=True):
        assert row[1] == pytest.approx(float(score), abs=1e-3)
        x1, y1, x2, y2 = box.tolist()
        assert row[2:] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.06)
    assert Viewer(detector).rows(view, 1.0) == []
    assert Viewer(detector).draw(view, 1.0).shape == expected.shape


def test_shares_of_classes_are_those_of_the_label_map(segmentor: Predictor, tmp_path: Path) -> None:
    view = Viewer(segmentor).open(write(tmp_path / 'x.png'))
    rows = Viewer(segmentor).rows(view, 0.3)
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
    assert sum(row[1] for row in rows) == pytest.approx(100, abs=0.1)
    for name, share in rows:
        label = segmentor.classes.index(name)
        assert share == pytest.approx(100 * (view.labels == label).mean(), abs=0.01)
    drawn = Viewer(segmentor).draw(view, 0.3)
    assert np.array_equal(drawn, segmentor.painter.draw_label_map(view.image, view.labels))


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_what_is_looked_into_is_what_the_backbone_sees_and_makes(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    predictor: Predictor = request.getfixturevalue(kind)
    seen: list[torch.Tensor] = []
    hook = predictor.model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    shown = Viewer(predictor)
    view = shown.open(write(tmp_path / 'x.png'))
    hook.remove()
    height, width = view.prepared.shape[2:]
    assert torch.equal(seen[0][..., :height, :width], view.prepared)
    assert not seen[0][..., height:, :].any()
    inside = shown.look_inside(view, (149, 0))
    assert inside.stages[0].query == (0, inside.stages[0].features.shape[2] - 1)
    with torch.no_grad():
        maps, _ = CvTTrunk.forward(predictor.model.backbone, view.prepared)
    for stage, features in zip(inside.stages, maps, strict=True):
        assert torch.equal(stage.features, features[0])


def test_large_pictures_are_reduced_and_places_stay_those_of_the_file(
    detector: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, 'MAX_SIDE', 100)
    shown = Viewer(detector)
    view = shown.open(write(tmp_path / 'big.png', 400, 300))
    assert view.image.shape == (75, 100, 3)
    assert view.description == 'big.png: 400×300 pixels, reduced to 100×75 before the model saw it'
    rows = shown.rows(view, 0)
    assert max(row[2] + row[4] for row in rows) > 150
    assert all(row[2] + row[4] <= 400.2 and row[3] + row[5] <= 300.2 for row in rows)
    assert view.point_at((10, 10), (100, 75)) == (42, 42)
    assert view.point_at((499, 374), (500, 375)) == (399, 299)
    assert view.point_at((900, 900), (500, 375)) == (399, 299), 'beside the picture, as on a legend'
    for point in ((0, 0), (399, 299), (123, 45)):
        assert view.point_at(view.place_of(point, (800, 600)), (800, 600)) == point


def test_pictures_of_all_kinds_are_opened_upright(detector: Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    shown = Viewer(detector)
    turned = shown.open(write(tmp_path / 'turned.jpg', exif=exif))
    assert turned.size == (100, 150)
    assert turned.image.shape == (150, 100, 3)
    for name, mode in (('alpha.png', 'RGBA'), ('grey.png', 'L'), ('palette.gif', 'P'), ('print.jpg', 'CMYK')):
        assert shown.open(write(tmp_path / name, mode=mode)).image.shape == (100, 150, 3), name


def test_what_is_no_picture_is_one_line_and_the_next_one_is_opened(detector: Predictor, tmp_path: Path) -> None:
    (tmp_path / 'text.jpg').write_text('no picture')
    (tmp_path / 'empty.png').write_bytes(b'')
    whole = write(tmp_path / 'whole.jpg').read_bytes()
    (tmp_path / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    shown = Viewer(detector)
    for name in ('text.jpg', 'empty.png', 'cut.jpg'):
        with pytest.raises(Skipped, match='it cannot be read as an image') as error:
            shown.open(tmp_path / name)
        assert '\n' not in str(error.value)
    assert shown.open(tmp_path / 'whole.jpg').size == (150, 100)


def test_a_backbone_of_another_kind_is_named() -> None:
    shown = Viewer(SimpleNamespace(model=SimpleNamespace(backbone=nn.Linear(1, 1))))
    assert shown.cannot_look_inside.startswith('its backbone is Linear')
    with pytest.raises(Skipped, match='its backbone is Linear'):
        shown.look_inside(SimpleNamespace(), (0, 0))


def test_the_model_has_one_picture_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def load(*args: Any) -> Any:
        nonlocal inside, most
        inside, most = inside + 1, max(most, inside + 1)
        time.sleep(0.02)
        inside -= 1
        raise Skipped('that was all')

    def open_one(shown: Viewer) -> None:
        with pytest.raises(Skipped):
            shown.open(tmp_path / 'x.png')

    shown = Viewer(SimpleNamespace(load=load))
    threads = [threading.Thread(target=open_one, args=(shown,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_panels_show_each_block_and_stage_and_the_point(detector: Predictor, tmp_path: Path) -> None:
    shown = Viewer(detector)
    view = shown.open(write(tmp_path / 'x.png'))
    first, second = shown.look_inside(view, (20, 30)), shown.look_inside(view, (100, 60))
    attention = attention_panels(view, first)
    names = [panel.title.partition(':')[0] for panel in attention]
    assert names == ['stage 0, block 0', 'stage 1, block 0', 'stage 2, block 0', 'stage 2, block 1']
    assert [', cls ' in panel.title for panel in attention] == [False, False, True, True]
    alone, together = map_panels([(view, first)]), map_panels([(view, first), (view, second)])
    assert len(together) == 2 * len(alone) == 6
    for left, right in zip(together[::2], together[1::2], strict=True):
        assert np.array_equal(left.picture, right.picture), 'features are the same, so colours are'
    likeness = likeness_panels(first, [(view, first), (view, second)])
    assert [panel.title for panel in likeness] == [f'stage {i}: up to 1.00' for i in (0, 0, 1, 1, 2, 2)]
    assert not np.array_equal(likeness[0].picture, likeness[1].picture), 'the point is in its own picture alone'
    picture = circled(plain_picture(view), view, first)
    assert picture.shape == (400, 600, 3), 'four times as large'
    changed = np.argwhere((picture != plain_picture(view)).any(2))
    assert np.abs(changed.mean(0) - (4 * 30.5, 4 * 20.5)).max() < 1.5
