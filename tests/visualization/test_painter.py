from __future__ import annotations

from itertools import combinations, islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from cvt_dense.visualization.colors import Color, differences, far_from, lightness
from cvt_dense.visualization.painter import MIN_SIDE, TITLE_HEIGHT, Instances, Painter, side_by_side, write_image

CLASSES = ('cat', 'dog', 'Äpfel')
PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
COCO = [(220, 20, 60), (119, 11, 32), (0, 0, 142), (0, 0, 230)]  # and so on
#: Also tissue, blood cells, foliage and sky.
BACKGROUNDS = [(0, 0, 0), (255, 255, 255), (0, 0, 255), (128, 128, 128)]
BACKGROUNDS += [(230, 160, 190), (225, 150, 150), (80, 110, 50), (150, 190, 230)]


def instances(size: tuple[int, int], boxes: list[list[float]], with_masks: bool = True) -> Instances:
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    n = len(boxes)
    labels, scores = np.arange(n) % 3, np.linspace(0.9, 0.5, n)
    return Instances(np.array(boxes, np.float32).reshape(n, 4), labels, scores, masks if with_masks else None)


def colors_of(painter: Painter, count: int) -> list[Color]:
    return [painter.color(label) for label in range(count)]


def test_colours_come_from_a_palette_for_just_these_classes_or_are_chosen() -> None:
    assert colors_of(Painter(CLASSES, PALETTE), 3) == PALETTE
    chosen = colors_of(Painter(CLASSES), 3)
    for palette in (None, 'random', [], PALETTE[:2], [*PALETTE, (9, 9, 9)], COCO):
        assert colors_of(Painter(CLASSES, palette), 3) == chosen


def test_palettes_that_toolkits_give_to_data_sets_without_one_count_as_none() -> None:
    """mmdet keeps that of the data set's type, mmseg draws one at random."""
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import BaseSegDataset

    for names in (('RBC', 'WBC', 'platelet'), ('sky', 'building', 'pole', 'road')):
        expected = colors_of(Painter(names), len(names))
        for kind in (CocoDataset, BaseSegDataset):
            meta = kind(metainfo=dict(classes=names), lazy_init=True).metainfo
            assert len(meta['palette']) >= len(names)
            assert colors_of(Painter.of(meta), len(names)) == expected
    assert colors_of(Painter.of(dict(classes=CLASSES, palette=PALETTE)), 3) == PALETTE
    assert colors_of(Painter.of({}), 3) == chosen_colors(3)


def chosen_colors(count: int) -> list[Color]:
    return list(islice(far_from([]), count))


def test_a_class_has_one_colour_whatever_is_drawn_before() -> None:
    for palette in (None, PALETTE, [PALETTE[0]] * 3):
        backwards, forwards = Painter(CLASSES, palette), Painter(CLASSES, palette)
        assert [backwards.color(label) for label in range(20, -1, -1)][::-1] == colors_of(forwards, 21)
        assert colors_of(backwards, 21) == colors_of(forwards, 21)


def test_duplicates_in_a_palette_are_told_apart_and_so_are_labels_beyond_it() -> None:
    doubled = Painter([*CLASSES, 'a dog, too'], [*PALETTE, PALETTE[1]])
    colors = colors_of(doubled, 12)
    assert colors[:3] == PALETTE
    for i, color in enumerate(colors):
        assert i == 0 or differences(color, colors[:i]).min() > 15


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
@pytest.mark.parametrize('palette', [PALETTE, None, [(20, 0, 60), (119, 11, 32), (0, 0, 30)]])
@pytest.mark.parametrize('label', range(3))
def test_labels_boxes_and_masks_stand_out_from_any_background(
    background: Color, palette: list[Color] | None, label: int
) -> None:
    image = np.full((500, 500, 3), background[::-1], np.uint8)
    painter = Painter(CLASSES, palette)
    for with_masks in (True, False):
        found = instances((500, 500), [[100, 100, 400, 400]], with_masks)
        found = Instances(found.boxes, np.array([label]), found.scores, found.masks)
        picture = painter.draw_instances(image, found)
        grey = cv2.cvtColor(picture[83:97, 104:150], cv2.COLOR_BGR2GRAY).astype(int)
        assert grey.max() - grey.min() > 100, 'the letters within the label'
        # Across the edge there is its colour, a rim, and the background.
        across = [tuple(color[::-1]) for color in picture[392:408, 250].tolist()]
        assert painter.color(label) in across
        assert max(abs(lightness(color) - lightness(background)) for color in across) > 20


def test_lines_between_labels_of_a_map_are_seen_on_dark_and_on_light() -> None:
    for shade, dark in ((5, True), (250, False)):
        image = np.full((500, 500, 3), shade, np.uint8)
        labels = np.zeros((500, 500), int)
        labels[:, 250:] = 1
        picture = Painter(('a', 'b'), [(0, 0, 90), (60, 0, 0)]).draw_label_map(image, labels)
        line = picture[100, 245:255].astype(int).sum(1)
        ground = int(picture[100, 100].astype(int).sum())
        assert np.abs(line - ground).max() > 150
        assert (line.max() == 3 * 255) == dark


def test_labels_stay_in_the_picture_and_off_each_other(filled: list[list[int]]) -> None:
    size = (480, 480)
    boxes = [[0, 0, 60, 60], [2, 2, 62, 62], [470, 0, 480, 480], [0, 470, 480, 480], [0, 0, 480, 480]]
    painter = Painter(('a class with a long name',) * 3, PALETTE)
    image = np.full((*size, 3), 128, np.uint8)
    for box in boxes:
        painter.draw_instances(image, instances(size, [box], with_masks=False))
    assert len(filled) == len(boxes)
    assert all(0 <= x1 < x2 < 480 and 0 <= y1 < y2 < 480 for x1, y1, x2, y2 in filled)
    filled.clear()
    painter.draw_instances(image, instances(size, boxes, with_masks=False))
    assert len(filled) == 5
    for one, other in combinations(filled, 2):
        apart = one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
        assert apart, (one, other)


def test_small_objects_are_seen_beside_their_labels(filled: list[list[int]]) -> None:
    """As on blood cells: dots of a few pixels on, between and beside large discs, and in the corners."""
    generator = np.random.default_rng(0)
    dots = [[x, y, x + 10, y + 10] for x, y in generator.integers(0, (630, 470), (12, 2)).tolist()]
    dots += [[0, 0, 9, 9], [631, 0, 640, 9], [0, 471, 9, 480], [631, 471, 640, 480], [300, 200, 310, 210]]
    discs = [[x, y, x + 100, y + 100] for x, y in generator.integers(0, (540, 380), (8, 2)).tolist()]
    found = instances((480, 640), [*discs, *dots], with_masks=False)
    Painter(('RBC', 'WBC', 'platelet')).draw_instances(np.full((480, 640, 3), 230, np.uint8), found)
    assert len(filled) == len(found.labels), 'there is room for all'
    for x1, y1, x2, y2 in filled:
        for left, top, right, bottom in dots:
            assert x2 < left or right <= x1 or y2 < top or bottom <= y1


def test_a_line_leads_from_an_object_to_a_label_that_is_farther_away(filled: list[list[int]]) -> None:
    image = np.full((480, 480, 3), 128, np.uint8)
    boxes = [[230, 230, 238, 238], *([x, y, x + 8, y + 8] for x in range(160, 310, 14) for y in range(195, 280, 14))]
    labels = np.array([1, *[0] * (len(boxes) - 1)])
    found = Instances(np.array(boxes, float), labels, np.linspace(0.9, 0.5, len(boxes)))
    painter = Painter(CLASSES)
    picture = painter.draw_instances(image, found)
    x1, _, x2, bottom = filled[0]
    assert bottom < 195, 'above all'
    between = picture[bottom + 2 : 230, x1:x2]
    assert (between == painter.color(1)[::-1]).all(2).any(1).all(), 'in each row'


@pytest.mark.parametrize('size', [(90, 600), (600, 90), (600, 30), (16, 500), (8, 500), (500, 3), (1, 1)])
@pytest.mark.parametrize('name', ['cat', 'a class with a name that is too long for most pictures'])
def test_a_label_that_is_too_large_for_a_picture_is_made_to_fit_and_keeps_the_score(
    size: tuple[int, int], name: str, texts: list[str], filled: list[list[int]]
) -> None:
    found = instances(size, [[0, 0, size[1] / 2, size[0] / 2]], with_masks=False)
    picture = Painter((name,)).draw_instances(np.zeros((*size, 3), np.uint8), found)
    for x1, y1, x2, y2 in filled:
        assert 0 <= x1 < x2 < picture.shape[1]
        assert 0 <= y1 < y2 < picture.shape[0]
    if min(size) >= 90:
        assert len(filled) == 1
        assert texts[0].endswith(' 0.90')
        kept = texts[0].removesuffix(' 0.90').removesuffix('…')
        assert name.startswith(kept)
        assert len(kept) >= 3


def test_the_surest_is_on_top_and_without_scores_the_smallest(texts: list[str]) -> None:
    size = (500, 500)
    boxes = [[150, 150, 350, 350], [100, 100, 400, 400]]
    image = np.zeros((*size, 3), np.uint8)
    given = instances(size, boxes)
    for labels, scores, top in (([0, 1], [0.9, 0.5], 0), ([0, 1], [0.5, 0.9], 1), ([0, 1], None, 0), ([1, 0], None, 1)):
        texts.clear()
        found = Instances(given.boxes, np.array(labels), scores and np.array(scores), given.masks)
        picture = Painter(CLASSES, PALETTE).draw_instances(image, found)
        assert picture[250, 250].argmax() == 2 - top, (scores, 'the colour of the upper mask')
        assert texts[0] == CLASSES[top] + (' 0.90' if scores else '')


def test_ignored_instances_are_grey_and_marked(texts: list[str]) -> None:
    size = (500, 500)
    found = instances(size, [[100, 100, 300, 300], [350, 350, 450, 450]])
    found = Instances(found.boxes, found.labels, None, found.masks, np.array([True, False]))
    picture = Painter(CLASSES, PALETTE).draw_instances(np.zeros((*size, 3), np.uint8), found)
    assert sorted(texts) == ['cat (ignored)', 'dog']
    assert picture[200, 200].tolist() == [64, 64, 64]
    assert picture[400, 400].tolist() == [0, 102, 0]


def test_masks_tint_what_they_cover_and_nothing_else() -> None:
    size = (500, 500)
    image = np.full((*size, 3), 200, np.uint8)
    found = instances(size, [[100, 100, 300, 300]])
    found.masks[0, 200:, 200:] = False
    picture = Painter(CLASSES, PALETTE).draw_instances(image, found)
    assert picture[150, 150].tolist() == [120, 120, 222]
    assert picture[250, 250].tolist() == [200, 200, 200], 'in the box, and not in the mask'
    assert picture[400, 400].tolist() == [200, 200, 200]
    assert (picture[195:205, 250] == PALETTE[0][::-1]).all(1).any(), 'the outline'
    assert (image == 200).all(), 'the image itself is left as it is'


def test_what_is_drawn_grows_with_a_small_image() -> None:
    size = (100, 80)
    image = np.full((*size, 3), 200, np.uint8)
    image[:, 60:] = 100
    found = instances(size, [[10, 60, 30, 90]])
    found.masks[0, :, :15] = found.masks[0, :, 25:] = False
    picture = Painter(CLASSES, PALETTE).draw_instances(image, found)
    assert picture[5 * 75, 5 * 20].tolist() == [120, 120, 222], 'the mask'
    assert picture[5 * 75, 5 * 12].tolist() == [200] * 3, 'the box beside it'
    assert picture[5 * 50, [5 * 50, 5 * 70]].tolist() == [[200] * 3, [100] * 3]
    across = (picture[5 * 75] == PALETTE[0][::-1]).all(1)
    assert np.flatnonzero(across)[[0, -1]].tolist() == pytest.approx([5 * 10, 5 * 30], abs=5)


def test_lines_and_letters_grow_with_a_large_image(filled: list[list[int]]) -> None:
    heights, widths = [], []
    for side in (500, 3000):
        image = np.zeros((side, side, 3), np.uint8)
        found = instances((side, side), [[side // 4, side // 4, side // 2, side // 2]], with_masks=False)
        picture = Painter(CLASSES, PALETTE).draw_instances(image, found)
        _, top, _, bottom = filled[-1]
        heights.append(bottom - top)
        widths.append(int((picture[side * 3 // 8, : side * 3 // 8] == PALETTE[0][::-1]).all(1).sum()))
    assert heights[1] > 2.5 * heights[0]
    assert widths[1] > 2.5 * widths[0]


def test_empty_masks_and_boxes_at_the_border_are_drawn() -> None:
    size = (100, 80)
    found = instances(size, [[0, 0, 0, 0], [-3, -3, 90, 120], [79, 99, 80, 100]])
    picture = Painter(CLASSES).draw_instances(np.zeros((*size, 3), np.uint8), found)
    assert picture.shape == (500, 400, 3)


def test_a_label_map_is_blended_and_its_legend_has_what_occurs(texts: list[str]) -> None:
    image = np.full((500, 500, 3), 100, np.uint8)
    labels = np.zeros((500, 500), np.int64)
    labels[:, 300:] = 2
    picture = Painter(CLASSES, PALETTE).draw_label_map(image, labels)
    assert picture.shape[0] == 500
    assert picture[250, 100].tolist() == [45, 45, 185]
    assert picture[250, 400].tolist() == [185, 45, 45]
    assert picture[250, 300].max() < 30, 'a dark line between them'
    assert texts == ['cat 60.0%', 'Äpfel 40.0%']
    legend = picture[:, 500:].reshape(-1, 3).tolist()
    shown = [color for color in PALETTE if list(color[::-1]) in legend]
    assert shown == [PALETTE[0], PALETTE[2]]
    swatches = [int(np.flatnonzero((picture[:, 500:] == color[::-1]).all(2).any(1))[0]) for color in shown]
    assert swatches == sorted(swatches), 'the larger class comes first'


def test_where_nothing_is_labelled_a_map_leaves_the_image_as_it_is(texts: list[str]) -> None:
    image = np.full((500, 500, 3), 100, np.uint8)
    labels = np.full((500, 500), 255)
    labels[:, 300:] = 2
    picture = Painter(CLASSES, PALETTE).draw_label_map(image, labels, unlabelled=255)
    assert picture[250, 100].tolist() == [100, 100, 100]
    assert picture[250, 400].tolist() == [185, 45, 45]
    assert texts == ['unlabelled 60.0%', 'Äpfel 40.0%']
    texts.clear()
    Painter(CLASSES, PALETTE).draw_label_map(image, labels)
    assert texts == ['class 255 60.0%', 'Äpfel 40.0%']


def test_a_legend_makes_a_picture_higher_unless_its_size_is_fixed(texts: list[str]) -> None:
    painter = Painter([f'class number {i}' for i in range(60)])
    labels = np.repeat(np.arange(60)[None], 40, 0)
    image = np.zeros((40, 60, 3), np.uint8)
    high = painter.draw_label_map(image, labels)
    assert len(texts) == 60
    texts.clear()
    fixed = painter.draw_label_map(image, labels, fixed_size=True)
    assert texts[-1] == f'{60 - len(texts) + 1} more'
    assert high.shape[0] > 60 * 14
    assert fixed.shape[0] == 40 * 8
    plain = painter.draw_label_map(image, labels * 0 + 3, fixed_size=True)
    assert plain.shape == fixed.shape, 'frames of a video are of one size, whatever occurs in them'


def test_pictures_are_joined_below_their_titles(texts: list[str]) -> None:
    pictures = {'wide': np.full((20, 300, 3), (1, 2, 3), np.uint8), 'high': np.full((90, 10, 3), (4, 5, 6), np.uint8)}
    joined = side_by_side(pictures)
    assert joined.shape == (TITLE_HEIGHT + 90, 2 * 300, 3)
    assert texts == ['wide', 'high']
    left, right = np.hsplit(joined[TITLE_HEIGHT:], 2)
    for half, picture in ((left, pictures['wide']), (right, pictures['high'])):
        height, width = picture.shape[:2]
        assert (half[:height, :width] == picture).all()
        assert (half[height:] == 255).all()
        assert (half[:, width:] == 255).all()
    titles = np.hsplit(joined[:TITLE_HEIGHT], 2)
    assert all((title < 100).any() for title in titles)


def test_titles_are_not_cut(texts: list[str]) -> None:
    narrow = np.zeros((50, 40, 3), np.uint8)
    titles = ('ground truth: not loaded by the pipeline', 'prediction')
    joined = side_by_side(dict.fromkeys(titles, narrow))
    left, right = np.hsplit(joined, 2)
    assert (left[:TITLE_HEIGHT, -4:] == 255).all(), 'white beyond the end of the text'
    assert (left[:TITLE_HEIGHT, -30:] < 255).any()
    assert (right[TITLE_HEIGHT:, :40] == 0).all()


def test_pictures_are_written_by_their_suffix_and_keep_fine_colours(tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, ::2, 1] = picture[:, 1::2, 2] = 200
    for name, tolerance in (('a/b.png', 0), ('c.jpg', 20)):
        write_image(tmp_path / name, picture)
        read = cv2.imread(str(tmp_path / name)).astype(int)
        assert np.abs(read - picture).max() <= tolerance
    assert (tmp_path / 'c.jpg').read_bytes().startswith(b'\xff\xd8')
