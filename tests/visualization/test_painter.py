from __future__ import annotations

import cv2
import numpy as np
import pytest

from cvt_dense.visualization.painter import MIN_SIDE, Instances, Painter

CLASSES = ('cat', 'dog', 'Äpfel')
PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
BACKGROUNDS = [(0, 0, 0), (255, 255, 255), (0, 0, 255), (128, 128, 128)]


def instances(size: tuple[int, int], boxes: list[list[float]], with_masks: bool = True) -> Instances:
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    n = len(boxes)
    labels, scores = np.arange(n) % 3, np.linspace(0.9, 0.5, n)
    return Instances(np.array(boxes, np.float32).reshape(n, 4), labels, scores, masks if with_masks else None)


def test_colours_come_from_the_palette_or_differ() -> None:
    assert Painter(CLASSES, PALETTE).color(2) == (0, 0, 255)
    for palette in (None, 'random', PALETTE[:2], []):
        colors = {Painter(CLASSES, palette).color(i) for i in range(40)}
        assert len(colors) == 40
        assert all(0 <= value <= 255 for color in colors for value in color)


def test_a_label_without_a_name_gets_one() -> None:
    assert Painter(CLASSES).name(2) == 'Äpfel'
    assert Painter(CLASSES).name(7) == 'class 7'
    assert Painter(()).name(0) == 'class 0'


@pytest.mark.parametrize('size', [(16, 16), (40, 300), (160, 160), (600, 500)])
def test_pictures_of_small_images_are_enlarged_by_a_whole_number(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    picture = Painter(CLASSES).draw_instances(image, instances(size, []))
    zoom = picture.shape[0] // size[0]
    assert picture.shape == (zoom * size[0], zoom * size[1], 3)
    assert max(picture.shape) >= MIN_SIDE
    assert zoom == 1 or (zoom - 1) * max(size) < MIN_SIDE


@pytest.mark.parametrize('background', BACKGROUNDS)
@pytest.mark.parametrize('label', range(3))
def test_labels_and_boxes_stand_out_from_any_background(background: tuple[int, int, int], label: int) -> None:
    image = np.full((500, 500, 3), background, np.uint8)
    found = instances((500, 500), [[100, 100, 400, 400]], with_masks=False)
    found = Instances(found.boxes, np.array([label]), found.scores, None)
    picture = Painter(CLASSES, PALETTE).draw_instances(image, found)

    def contrast(region: np.ndarray) -> int:
        grey = cv2.cvtColor(region, cv2.COLOR_BGR2GRAY).astype(int)
        return int(grey.max() - grey.min())

    assert contrast(picture[80:98, 102:160]) > 70, 'the letters'
    # Across the edge of the box there is its colour, a dark rim, and the background.
    across = picture[395:406, 250].astype(int)
    assert np.abs(across - np.array(background)).sum(1).max() > 200
    assert (np.abs(across - np.array(PALETTE[label][::-1])).sum(1) == 0).any()


def test_labels_stay_in_the_picture_and_off_each_other() -> None:
    size = (480, 480)
    boxes = [[0, 0, 60, 60], [2, 2, 62, 62], [470, 0, 480, 480], [0, 470, 480, 480], [0, 0, 480, 480]]
    whole = Painter(('a class with a long name',) * 3, PALETTE)
    image = np.full((*size, 3), 128, np.uint8)
    apart = [whole.draw_instances(image, instances(size, [box], with_masks=False)) for box in boxes]
    assert all((picture != 128).any() for picture in apart)
    together = whole.draw_instances(image, instances(size, boxes[:2], with_masks=False))
    # The label of the surer box is whole; the other one's went elsewhere.
    only = apart[0]
    assert (together[:18, 70:150] == only[:18, 70:150]).all()
    assert (together != only).any()


def test_masks_tint_what_they_cover_and_nothing_else() -> None:
    size = (500, 500)
    image = np.full((*size, 3), 200, np.uint8)
    picture = Painter(CLASSES, PALETTE).draw_instances(image, instances(size, [[100, 100, 300, 300]]))
    assert picture[200, 200].tolist() == [120, 120, 222]
    assert picture[400, 400].tolist() == [200, 200, 200]
    assert (image == 200).all(), 'the image itself is left as it is'


def test_empty_masks_and_boxes_at_the_border_are_drawn() -> None:
    size = (100, 80)
    found = instances(size, [[0, 0, 0, 0], [-3, -3, 90, 120], [79, 99, 80, 100]])
    picture = Painter(CLASSES).draw_instances(np.zeros((*size, 3), np.uint8), found)
    assert picture.shape == (500, 400, 3)


def test_a_label_map_is_blended_and_its_legend_has_what_occurs() -> None:
    image = np.full((500, 500, 3), 100, np.uint8)
    labels = np.zeros((500, 500), np.int64)
    labels[:, 300:] = 2
    picture = Painter(CLASSES, PALETTE).draw_label_map(image, labels)
    assert picture.shape[0] == 500
    assert picture[250, 100].tolist() == [45, 45, 185]
    assert picture[250, 400].tolist() == [185, 45, 45]
    legend = picture[:, 500:].reshape(-1, 3).tolist()
    shown = [color for color in PALETTE if list(color[::-1]) in legend]
    assert shown == [PALETTE[0], PALETTE[2]]
    swatches = [int(np.flatnonzero((picture[:, 500:] == color[::-1]).all(2).any(1))[0]) for color in shown]
    assert swatches == sorted(swatches), 'the larger class comes first'


def test_a_legend_makes_a_picture_higher_unless_its_size_is_fixed() -> None:
    painter = Painter([f'class number {i}' for i in range(60)])
    labels = np.repeat(np.arange(60)[None], 40, 0)
    image = np.zeros((40, 60, 3), np.uint8)
    high = painter.draw_label_map(image, labels)
    fixed = painter.draw_label_map(image, labels, fixed_size=True)
    assert high.shape[0] > 60 * 14
    assert fixed.shape[0] == 40 * 8
    plain = painter.draw_label_map(image, labels * 0 + 3, fixed_size=True)
    assert plain.shape == fixed.shape, 'frames of a video are of one size, whatever occurs in them'
