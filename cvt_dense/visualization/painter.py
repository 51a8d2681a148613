"""Draw predictions and ground truth, legible on any background.

Of instances that is masks, boxes and labels; of label maps the map and a legend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colors import DARK, GREY, WHITE, Color, far_from, letters_on, repaired, rim_of
from .placement import Rectangle, nearest_points, place_labels

if TYPE_CHECKING:
    from mmengine.structures import InstanceData

#: Of instances that are drawn unless another threshold is given: in samples, in predictions and by the demo.
SCORE_THRESHOLD = 0.3
#: Pictures of images whose longer side is shorter are enlarged: labels would hide what they name.
MIN_SIDE = 480
#: Pixels of a side of the largest JPEG that encoders write.
JPEG_LIMIT = 65500
#: Of the titles above pictures that are joined, in pixels.
TITLE_HEIGHT = 28

_SMALLEST_FONT = 9  # pixels; a label that is too long in it is shortened
_MASK_OPACITY = 0.4
_MAP_OPACITY = 0.55
_DARK_GROUND = 60  # of 255: a dark line would not be seen on it


@dataclass(frozen=True)
class Instances:
    """Objects in an image of H by W pixels.

    Attributes:
        boxes: ``(N, 4)`` of x1, y1, x2, y2 in pixels.
        labels: ``(N,)`` of class indices.
        scores: ``(N,)`` from 0 to 1, None for ground truth.
        masks: ``(N, H, W)`` of bool, None for a detector without masks.
        ignored: ``(N,)`` of bool, ground truth that evaluation ignores (crowds); None if it ignores none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None
    ignored: np.ndarray | None = None

    @classmethod
    def of(cls, data: InstanceData) -> Instances:
        """Take them from mmdet: tensors on any device, or mmdet's own structures of boxes and masks."""
        data = data.numpy()
        boxes, masks = data.bboxes, data.get('masks')
        return cls(
            boxes=np.asarray(getattr(boxes, 'tensor', boxes)),
            labels=data.labels,
            scores=data.get('scores'),
            masks=masks.to_ndarray().astype(bool) if hasattr(masks, 'to_ndarray') else masks,
            ignored=data.get('ignored'),
        )

    def from_score(self, threshold: float) -> Instances:
        """Those that score at least so much; all have to have scores."""
        kept = self.scores >= threshold
        masks = None if self.masks is None else self.masks[kept]
        return Instances(self.boxes[kept], self.labels[kept], self.scores[kept], masks)


class _Key(NamedTuple):
    """What a label says, of which the name may be shortened, and its RGB colour."""

    name: str
    suffix: str
    color: Color


class Painter:
    """Draws objects and label maps of one set of classes.

    A class has the same colour in all pictures, which depends on nothing but its label and the palette.

    Args:
        classes: Their names, in the order of the labels.
        palette: An RGB colour for each, of which those that look like an earlier one are replaced. If it is not a list,
            or has more or fewer, all are chosen: as different as possible from each other and from common pictures.
    """

    def __init__(self, classes: Sequence[str], palette: Sequence[Sequence[int]] | str | None = None) -> None:
        self.classes = [str(name) for name in classes]
        given = [] if palette is None or isinstance(palette, str) else [_color(entry) for entry in palette]
        # A data set of other classes than its own type's still has the palette of those.
        self._colors = repaired(given) if len(given) == len(self.classes) else []
        self._further = far_from(self._colors)

    @classmethod
    def of(cls, metainfo: Mapping[str, Any]) -> Painter:
        """One for the classes and the palette of a data set's ``metainfo``, which may have neither."""
        classes, palette = metainfo.get('classes') or (), metainfo.get('palette')
        return cls(classes, None if _is_made_up(palette, len(classes)) else palette)

    def name(self, label: int) -> str:
        """The name of a class, ``class N`` if it has none."""
        return self.classes[label] if label < len(self.classes) else f'class {label}'

    def color(self, label: int) -> Color:
        """The RGB colour of a class."""
        while len(self._colors) <= label:
            self._colors.append(next(self._further))
        return self._colors[label]

    def draw_instances(self, image: np.ndarray, found: Instances) -> np.ndarray:
        """Draw masks, boxes, and labels with scores: the surest on top, without scores the smallest.

        Args:
            image: ``(H, W, 3)`` of uint8, BGR.
            found: In pixels of the image.

        Returns:
            ``(z H, z W, 3)`` of uint8, BGR, where z is 1 unless the image is small.
        """
        zoom = zoom_of(image)
        picture = enlarged(image, zoom)
        keys = [self._instance_key(found, i) for i in range(len(found.labels))]
        rank = -np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1) if found.scores is None else found.scores
        order = np.argsort(rank, kind='stable')
        if found.masks is not None:
            for i in order:
                _draw_mask(picture, found.masks[i], zoom, keys[i].color)
        boxes = np.round(found.boxes * zoom).astype(int).tolist()
        for i in order:
            for shade, line in _strokes(keys[i].color, picture):
                cv2.rectangle(picture, boxes[i][:2], boxes[i][2:], shade, line)
        surest_first = order[::-1].tolist()
        return _draw_labels(picture, [boxes[i] for i in surest_first], [keys[i] for i in surest_first])

    def _instance_key(self, found: Instances, i: int) -> _Key:
        label = int(found.labels[i])
        if found.ignored is not None and found.ignored[i]:
            return _Key(self.name(label), ' (ignored)', GREY)
        return _Key(self.name(label), '' if found.scores is None else f' {found.scores[i]:.2f}', self.color(label))

    def draw_label_map(
        self, image: np.ndarray, labels: np.ndarray, fixed_size: bool = False, unlabelled: int | None = None
    ) -> np.ndarray:
        """Blend an image with its label map, and put a legend of the classes in it on the right, the largest first.

        Args:
            image: ``(H, W, 3)`` of uint8, BGR.
            labels: ``(H, W)`` of class indices.
            fixed_size: Make the size independent of what occurs, as a video needs it; rows that do not fit are dropped.
            unlabelled: The label of pixels that belong to no class, where the image is shown as it is.

        Returns:
            ``(h, w, 3)`` of uint8, BGR: the image, enlarged if it is small, and the legend.
        """
        zoom = zoom_of(image)
        picture = enlarged(image, zoom)
        large = np.repeat(np.repeat(labels, zoom, 0), zoom, 1).astype(np.uint16)
        colors = np.array([self.color(i)[::-1] for i in range(int(labels.max()) + 1)], np.uint8)
        tinted = cv2.addWeighted(picture, 1 - _MAP_OPACITY, colors[large], _MAP_OPACITY, 0)
        picture = tinted if unlabelled is None else np.where((large == unlabelled)[..., None], picture, tinted)
        edge = cv2.morphologyEx(large, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
        is_dark = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[edge, None] < _DARK_GROUND
        picture[edge] = np.where(is_dark, np.uint8(WHITE), np.uint8(DARK))
        legend = self._legend(labels, picture.shape[0], _font_size(picture), fixed_size, unlabelled)
        below = ((0, max(0, legend.shape[0] - picture.shape[0])), (0, 0), (0, 0))
        return np.hstack([np.pad(picture, below, constant_values=255), legend])

    def _legend(
        self, labels: np.ndarray, height: int, font_size: int, fixed_size: bool, unlabelled: int | None
    ) -> np.ndarray:
        """``(h, w, 3)`` of uint8, BGR; h is at least ``height``, and both depend on what occurs unless fixed."""
        present, pixels = np.unique(labels, return_counts=True)
        largest_first = np.argsort(-pixels, kind='stable')
        font = _font(font_size)
        row = round(1.5 * font_size)
        keys = {int(label): (self.name(int(label)), self.color(int(label))) for label in present}
        if unlabelled in keys:
            keys[unlabelled] = 'unlabelled', WHITE
        rows = [(*keys[int(present[i])], pixels[i] / labels.size) for i in largest_first]
        fitting = max(1, (height - row // 2) // row)
        hidden = len(rows) - fitting + 1 if fixed_size and len(rows) > fitting else 0
        rows = rows[: len(rows) - hidden]
        names = [name for name, _, _ in rows] + (self.classes if fixed_size else [])
        width = math.ceil(max(font.getlength(f'{name} 100.0%') for name in names)) + 3 * font_size
        canvas = Image.new('RGB', (width, max(height, row * (len(rows) + bool(hidden)) + row // 2)), 'white')
        draw = ImageDraw.Draw(canvas)
        for y, (name, color, share) in zip(count(row // 2, row), rows):
            box = (font_size // 2, y, round(1.5 * font_size), y + font_size)
            draw.rectangle(box, fill=color, outline=DARK)
            draw.text((2 * font_size, y - font_size // 8), f'{name} {share:.1%}', font=font, fill=DARK)
        if hidden:
            y = row // 2 + row * len(rows)
            draw.text((2 * font_size, y - font_size // 8), f'{hidden} more', font=font, fill=DARK)
        return cv2.cvtColor(np.asarray(canvas), cv2.COLOR_RGB2BGR)


def side_by_side(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Join pictures from left to right, each below its title and in as much room as the largest one, or title, takes.

    Args:
        pictures: ``(h, w, 3)`` of uint8, BGR, by title.

    Returns:
        ``(h, w, 3)`` of uint8, BGR.
    """
    font, margin = _font(TITLE_HEIGHT * 2 // 3), TITLE_HEIGHT // 4
    height, width = np.max([picture.shape[:2] for picture in pictures.values()], axis=0).tolist()
    width = max(width, *(math.ceil(font.getlength(title)) + 2 * margin for title in pictures))
    canvas = Image.new('RGB', (width * len(pictures), TITLE_HEIGHT + height), 'white')
    draw = ImageDraw.Draw(canvas)
    for left, (title, picture) in zip(count(0, width), pictures.items()):
        draw.text((left + margin, TITLE_HEIGHT // 8), title, font=font, fill=DARK)
        canvas.paste(Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)), (left, TITLE_HEIGHT))
    return cv2.cvtColor(np.asarray(canvas), cv2.COLOR_RGB2BGR)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a PNG or a JPEG, by the suffix, and the folders that it lies in.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the format has no images of that size.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Full colour resolution: half of it blurs small letters.
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    height, width = image.shape[:2]
    if path.suffix == '.jpg' and max(height, width) > JPEG_LIMIT:
        raise ValueError(f'a JPEG has at most {JPEG_LIMIT} pixels a side, and the picture is {width}x{height}')
    encoded, content = cv2.imencode(path.suffix, image, options if path.suffix == '.jpg' else [])
    if not encoded:
        raise ValueError(f'OpenCV makes no {path.suffix} of {width}x{height} pixels')
    path.write_bytes(content.tobytes())


def _draw_mask(picture: np.ndarray, mask: np.ndarray, zoom: int, color: Color) -> None:
    """Blend one mask ``(H, W)`` into a picture in place, and draw its outline."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    if not w:
        return
    region = picture[y * zoom : (y + h) * zoom, x * zoom : (x + w) * zoom]
    cut = mask[y : y + h, x : x + w].astype(np.uint8) * 255
    inside = cv2.resize(cut, region.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 127
    region[inside] = (1 - _MASK_OPACITY) * region[inside] + _MASK_OPACITY * np.array(color[::-1])
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for shade, line in _strokes(color, picture):
        cv2.drawContours(picture, contours, -1, shade, line, offset=(x * zoom, y * zoom))


def _draw_labels(picture: np.ndarray, boxes: Sequence[Rectangle], keys: Sequence[_Key]) -> np.ndarray:
    """Draw labels beside their boxes, with a line to those that are farther away; the first ones have first choice."""
    canvas = Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    draw = ImageDraw.Draw(canvas)
    labels = [_Label(key, _font_size(picture), canvas.size) for key in keys]
    width = _line_width(picture)
    rim = max(line for _, line in _strokes(DARK, picture)) // 2
    places = place_labels(canvas.size, boxes, [label.size for label in labels], rim + 1)
    drawn = [(box, place, label) for box, place, label in zip(boxes, places, labels) if place]
    for box, place, label in reversed(drawn):
        ends = nearest_points(place, (box[0], box[1], box[2] + 1, box[3] + 1))
        if math.dist(*ends) > 2 * rim + 2:
            for shade, line in _strokes(label.color, picture):
                draw.line(ends, fill=shade[::-1], width=line - width // 2)
    for _, place, label in drawn:
        label.draw(draw, place)
    return cv2.cvtColor(np.asarray(canvas), cv2.COLOR_RGB2BGR)


class _Label:
    """A text on a ground of its class's colour, in letters as large as fit into a picture of this size."""

    def __init__(self, key: _Key, font_size: int, canvas: tuple[int, int]) -> None:
        self.color = key.color
        for size in range(font_size, 0, -1):
            self._font, self._margin = _font(size), size // 4
            height = sum(self._font.getmetrics()) + self._margin
            self._text = key.name + key.suffix
            kept = len(key.name)
            while size <= _SMALLEST_FONT and kept and self._width() > canvas[0]:
                kept -= 1
                self._text = f'{key.name[:kept]}…{key.suffix}'
            if (self._width() <= canvas[0] and height <= canvas[1]) or size == 1:
                break
        self.size = min(self._width(), canvas[0]), min(height, canvas[1])

    def _width(self) -> int:
        return math.ceil(self._font.getlength(self._text)) + 2 * self._margin

    def draw(self, draw: ImageDraw.ImageDraw, place: Rectangle) -> None:
        x1, y1, x2, y2 = place
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=self.color, outline=rim_of(self.color))
        position = x1 + self._margin, y1 + self._margin // 2
        draw.text(position, self._text, font=self._font, fill=letters_on(self.color))


def _strokes(color: Color, picture: np.ndarray) -> tuple[tuple[Color, int], tuple[Color, int]]:
    """BGR colours and widths of a line with its rim, in the order of drawing."""
    width = _line_width(picture)
    return (rim_of(color), width + 2 * max(1, width // 3)), (color[::-1], width)


def zoom_of(image: np.ndarray) -> int:
    """How many times as large an image is drawn."""
    return max(1, math.ceil(MIN_SIDE / max(image.shape[:2])))


def enlarged(image: np.ndarray, zoom: int) -> np.ndarray:
    """A copy, ``zoom`` times as large."""
    return image.copy() if zoom == 1 else cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)


def _line_width(picture: np.ndarray) -> int:
    return max(2, round(max(picture.shape[:2]) / 400))


def _font_size(picture: np.ndarray) -> int:
    return max(14, round(max(picture.shape[:2]) / 60))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # OpenCV's own fonts have only ASCII.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')), size)


def _color(entry: Sequence[int]) -> Color:
    red, green, blue = (int(value) for value in entry)
    return red, green, blue


def _is_made_up(palette: Any, count: int) -> bool:
    """Whether a palette is the one that mmseg draws at random for any data set of so many classes without one."""
    made_up = np.random.RandomState(42).randint(0, 255, size=(count, 3))
    return not isinstance(palette, str) and np.array_equal(palette, made_up)
