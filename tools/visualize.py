"""Draw what a CvT or a CMT makes of images: the maps of its stages, and what a chosen point attends to in each block.

Example:
    python tools/visualize.py image.jpg --arch cvt-13 --checkpoint cvt-13-384x384-in22k --point 320 200
    python tools/visualize.py image.jpg --config CONFIG --checkpoint work_dirs/NAME/epoch_12.pth --heads
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from cvt_dense import cli
from cvt_dense.analysis.inspection import (
    AttentionRow,
    Lattice,
    StageView,
    effective_rank,
    inspect_stages,
    principal_components,
    to_pixels,
)
from cvt_dense.checkpoints import LoadReport, load_pretrained
from cvt_dense.checkpoints.families import FAMILIES, find_variant
from cvt_dense.errors import UserError, reason
from cvt_dense.models.trunk import Trunk

if find_spec('matplotlib'):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 2.3  # width of a panel, in inches
DPI = 110
LETTERS = 12  # of a title, an inch
COLUMNS = 5
#: Times the mean weight that are drawn brightest, unless a weight is larger: even weights are to look like that.
BRIGHT = 4

VARIANTS = ', '.join(name for family in FAMILIES.values() for name in family.variants)
Pixels = NDArray[np.uint8]
Point = tuple[int, int]


@dataclass(frozen=True)
class Network:
    """A trunk, in eval mode, and what to know about it.

    Attributes:
        trunk: The network.
        mean: Of its images, per channel in 0 … 255.
        std: Likewise.
        takes_rgb: Whether its images are RGB and not BGR.
        report: What was loaded; None if the weights are random.
    """

    trunk: Trunk
    mean: Sequence[float]
    std: Sequence[float]
    takes_rgb: bool
    report: LoadReport | None

    def prepare(self, pixels: Pixels) -> Tensor:
        """Bring an ``(H, W, 3)`` RGB image to the ``(1, 3, H, W)`` that the trunk takes."""
        image = torch.from_numpy(pixels if self.takes_rgb else pixels[..., ::-1].copy())
        return ((image - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1)[None]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files')
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument('--arch', help=f'variant: {VARIANTS}')
    network.add_argument('--config', help='config whose backbone is inspected')
    parser.add_argument(
        '--checkpoint',
        help='whatever init_cfg takes, a trained detector too (default: what the config starts from; '
        'with --arch none, and random weights)',
    )
    parser.add_argument(
        '--point',
        nargs=2,
        type=int,
        metavar=('X', 'Y'),
        help='pixel of the image file, upright, whose attention is drawn (default: the centre)',
    )
    parser.add_argument('--heads', action='store_true', help='also draw each head by itself')
    parser.add_argument('--size', type=int, default=640, help='longer side that images are reduced to (default: 640)')
    parser.add_argument('--out', default='work_dirs/visualize', help='folder to write to (default: %(default)s)')
    return parser.parse_args()


def build_network(arch: str | None, config: str | None, checkpoint: str | None) -> Network:
    """The network that the arguments name, with the weights that they name.

    Raises:
        UserError: If the variant is unknown, or the config is not one of a known family on three-channel images.
        CheckpointError: If the weights are not found or do not fit.
    """
    torch.manual_seed(0)
    mean, std = ([255 * value for value in values] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    takes_rgb, prefix = True, None
    if config:
        trunk, preprocessor, start, prefix = _read_config(config)
        mean, std = preprocessor.get('mean') or [0.0] * 3, preprocessor.get('std') or [1.0] * 3
        takes_rgb = bool(preprocessor.get('bgr_to_rgb') or preprocessor.get('rgb_to_bgr'))  # mmengine swaps for either
        checkpoint, prefix = (checkpoint, None) if checkpoint else (start, prefix)
    elif arch and (found := find_variant(arch)):
        family, variant = found
        trunk = family.trunk(variant)
    else:
        raise UserError(f'unknown arch {arch!r}; choose one of {VARIANTS}')
    report = None
    if checkpoint:
        report = load_pretrained(trunk, checkpoint, prefix)
    return Network(trunk.eval(), mean, std, takes_rgb, report)


def _read_config(path: str) -> tuple[Trunk, Mapping[str, Any], str | None, str | None]:
    """A config's backbone, the settings of its preprocessor, and the checkpoint and prefix that it starts from."""
    if not find_spec('mmengine'):
        raise UserError('--config needs mmengine: pip install mmengine, or its maintained fork onedl-mmengine')
    from cvt_dense import CMT, CvT
    from cvt_dense.backbones.weights import read_init_cfg
    from cvt_dense.engine.config import load_config
    from cvt_dense.registry import type_name

    cfg = load_config(path)
    settings = dict(cfg.model.get('backbone') or {})
    kind = type_name(settings) or None
    settings.pop('type', None)
    backbone = dict(CvT=CvT, CMT=CMT).get(kind)
    if backbone is None:
        raise UserError(f'config {path} has a backbone of type {kind}, and this tool inspects CvT and CMT')
    try:
        trunk = backbone(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f'the backbone of config {path} cannot be built: {reason(error)}') from error
    if trunk.in_channels != 3:
        raise UserError(f'the backbone of config {path} takes {trunk.in_channels} channels, and pictures have 3')
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if cfg.get('load_from'):
        return trunk, preprocessor, cfg.load_from, None
    start = next(iter(read_init_cfg(settings.get('init_cfg')).pretrained), None)
    return (trunk, preprocessor, start.checkpoint, start.prefix) if start else (trunk, preprocessor, None, None)


@dataclass(frozen=True)
class Photo:
    """An image, reduced if it is large, and the query in it.

    Attributes:
        path: The file.
        size: Width and height of the file's image, upright.
        query: Column and row of the query in the file's image.
        pixels: ``(H, W, 3)``, RGB, reduced.
        place: Column and row of the query in these.
    """

    path: Path
    size: tuple[int, int]
    query: Point
    pixels: Pixels
    place: Point

    @property
    def description(self) -> str:
        """The image's size, and the one that it was reduced to if it was."""
        height, width = self.pixels.shape[:2]
        full = f'{self.size[0]}x{self.size[1]}'
        return f'{full} pixels' + ('' if (width, height) == self.size else f' reduced to {width}x{height}')


def read_image(path: Path, point: Sequence[int] | None, longer_side: int, least: int) -> Photo:
    """Read an image, and reduce it if it is large.

    Args:
        path: The file.
        point: Column and row of a pixel of the file's image, upright; None for its centre.
        longer_side: The most pixels that a side may have.
        least: The fewest pixels that a side may have.

    Raises:
        UserError: If the file is not an image, the image is too small, or the point lies outside of it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            stored = Image.open(path)
            image = ImageOps.exif_transpose(stored).convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's for broken files
        raise UserError(f'image {path} cannot be read: {reason(error)}') from error
    full = image.size
    x, y = point or (full[0] // 2, full[1] // 2)
    if not (0 <= x < full[0] and 0 <= y < full[1]):
        upright = '' if full == stored.size else ', turned upright by its EXIF orientation'
        raise UserError(f'--point {x} {y} lies outside of image {path}, which has {full[0]}x{full[1]} pixels{upright}')
    image.thumbnail((longer_side, longer_side), Image.Resampling.BICUBIC)
    if min(image.size) < least:
        reduced = '' if image.size == full else f' once it is reduced to {image.width}x{image.height}'
        raise UserError(f'image {path} of {full[0]}x{full[1]} pixels is smaller than {least}x{least}{reduced}')
    column, row = (int((place + 0.5) * now / before) for place, now, before in zip((x, y), image.size, full))
    return Photo(path, full, (x, y), np.array(image), (column, row))


def draw_features(photo: Photo, views: Sequence[StageView], title: str) -> Figure:
    """Each stage's map: its first three principal components as red, green and blue, and its tokens' norms."""
    pixels = photo.pixels
    figure = _figure(2, 1 + len(views), pixels, title)
    axes = figure.subplots(2, 1 + len(views))
    _show_query(axes[0, 0], photo)
    axes[1, 0].set_axis_off()
    for stage, (column, view) in enumerate(zip(axes.T[1:], views)):
        channels, height, width = view.features.shape
        components = to_pixels(principal_components(view.features), view.lattice, pixels.shape[:2])
        _show(column[0], components.permute(1, 2, 0).numpy(), f'stage {stage}: {channels} × {height}×{width}')
        norm = view.features.norm(dim=0)
        spread = to_pixels(norm, view.lattice, pixels.shape[:2])
        _show(column[1], spread.numpy(), f'norm {norm.min():.3g} to {norm.max():.3g}', cmap='viridis')
    return figure


def draw_attention(photo: Photo, views: Sequence[StageView], title: str) -> Figure:
    """What the query attends to in each block, the mean over its heads."""
    panels = [
        (f'stage {stage}, block {block}', row.weights.mean(0), row.cls_weights.mean(), row.lattice)
        for stage, view in enumerate(views)
        for block, row in enumerate(view.attention)
    ]
    rows = -(-(1 + len(panels)) // COLUMNS)
    figure = _figure(rows, COLUMNS, photo.pixels, title)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    _show_query(axes[0], photo)
    for panel in axes[1 + len(panels) :]:
        panel.set_axis_off()
    for panel, (name, weights, cls_weight, lattice) in zip(axes[1:], panels):
        _show_weights(panel, photo, name, weights, cls_weight, lattice)
    return figure


def draw_heads(photo: Photo, rows: Sequence[AttentionRow], stage: int, title: str) -> Figure:
    """What the query attends to in one stage: a row for each block, a column for each head."""
    heads = len(rows[0].weights)
    figure = _figure(len(rows), heads, photo.pixels, f'{title}, stage {stage}')
    axes = figure.subplots(len(rows), heads, squeeze=False)
    for block, row in enumerate(rows):
        for head in range(heads):
            name = f'block {block}, head {head}'
            weights, cls_weight = row.weights[head], row.cls_weights[head]
            _show_weights(axes[block, head], photo, name, weights, cls_weight, row.lattice)
    return figure


def _figure(rows: int, columns: int, pixels: Pixels, title: str) -> Figure:
    height = PANEL * pixels.shape[0] / pixels.shape[1] + 0.2
    width = PANEL * columns
    lines = textwrap.wrap(title, int(LETTERS * width))
    figure = Figure(figsize=(width, height * rows + 0.15 + 0.17 * len(lines)), dpi=DPI, layout='constrained')
    figure.suptitle('\n'.join(lines), fontsize=10)
    return figure


def _show(axes: Axes, picture: NDArray[Any], title: str, **settings: Any) -> None:
    axes.imshow(picture, interpolation='nearest', **settings)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _show_query(axes: Axes, photo: Photo) -> None:
    """The image with the query, which the title names by its pixel of the file's image."""
    x, y = photo.query
    _show(axes, photo.pixels, f'{photo.size[0]}×{photo.size[1]}, query at {x} {y}')
    _mark(axes, photo.place)


def _show_weights(axes: Axes, photo: Photo, name: str, weights: Tensor, cls_weight: Tensor, lattice: Lattice) -> None:
    """Lay weights over the image in grey; the title has the largest one, as a multiple of the mean of those seen."""
    pixels = photo.pixels
    relative = weights * (weights > 0).sum() / weights.sum()
    largest = float(relative.max())
    heat = to_pixels(relative / max(largest, BRIGHT), lattice, pixels.shape[:2]).numpy()
    colour = matplotlib.colormaps['inferno'](heat)[..., :3]
    grey = 0.75 * pixels.mean(axis=2, keepdims=True) / 255
    opacity = 0.85 * heat[..., None] ** 0.5
    cls = f', cls {100 * cls_weight:.2g} %' if cls_weight > 0 else ''
    _show(axes, (1 - opacity) * grey + opacity * colour, f'{name}: {largest:.2g}×{cls}')
    _mark(axes, photo.place)


def _mark(axes: Axes, place: Point) -> None:
    axes.plot(*place, 'o', markersize=5, markerfacecolor='none', markeredgecolor='black', markeredgewidth=2.4)
    axes.plot(*place, 'o', markersize=5, markerfacecolor='none', markeredgecolor='cyan', markeredgewidth=1.2)


def table(views: Sequence[StageView], untrained: Sequence[StageView] | None) -> str:
    """What the maps and the rows are like, and in brackets what they are like with random weights."""
    lines = [f'{"stage":<7}{"RMS":<18}{"effective rank":<26}{"keys attended to":<30}']
    for stage, view in enumerate(views):
        channels = len(view.features)
        keys = max(int((row.weights[0] > 0).sum() + (row.cls_weights[0] > 0)) for row in view.attention)
        both = [view] if untrained is None else [view, untrained[stage]]
        rms = [f'{float(v.features.square().mean().sqrt()):.3g}' for v in both]
        rank = [f'{effective_rank(v.features):.3g}' for v in both]
        attended = [f'{float(torch.cat([row.keys_attended_to() for row in v.attention]).mean()):.4g}' for v in both]
        cells = [f'{now[0]} ({now[1]})' if untrained else now[0] for now in (rms, rank, attended)]
        lines.append(
            f'{stage:<7}{cells[0]:<18}{cells[1] + f" of {channels}":<26}{cells[2] + f" of {keys}":<30}'.rstrip()
        )
    return '\n'.join(lines)


def random_twin(trunk: Trunk) -> Trunk:
    """The same network with random weights."""
    twin = copy.deepcopy(trunk)
    twin.reset_parameters()
    return twin


def draw(photo: Photo, network: Network, twin: Trunk | None, source: str, heads: bool, out: Path) -> None:
    """Draw one image's pictures, and print what they show in numbers.

    Args:
        photo: The image, with the query.
        network: What is inspected.
        twin: The same with random weights, to compare with.
        source: Where the weights are from, for titles.
        heads: Whether each head is drawn, too.
        out: Folder to write to.
    """
    path, (x, y) = photo.path, photo.query
    image = network.prepare(photo.pixels)
    views = inspect_stages(network.trunk.stages, image, photo.place)
    title = f'{path.name}, query at {x} {y}, {source}'
    figures = {
        'features': draw_features(photo, views, title),
        'attention': draw_attention(photo, views, title),
    }
    if heads:
        figures |= {
            f'heads{stage}': draw_heads(photo, view.attention, stage, title) for stage, view in enumerate(views)
        }
    # A picture appears only when it is whole.
    with tempfile.TemporaryDirectory(dir=out, prefix='.partial-') as folder:
        for name, figure in figures.items():
            partial = Path(folder, f'{path.stem}_{name}.png')
            figure.savefig(partial)
            os.replace(partial, out / partial.name)
    print(f'\n{out / path.stem}_*.png: {", ".join(figures)}')
    print(f'{photo.description}, query at {x} {y}')
    print(table(views, twin and inspect_stages(twin.stages, image, photo.place)))


def main() -> None:
    args = parse_args()
    if not find_spec('matplotlib'):
        raise UserError('drawing needs matplotlib: pip install matplotlib')
    paths = [Path(path) for path in args.images]
    double = next((path for path in paths if [p.stem for p in paths].count(path.stem) > 1), None)
    if double:
        raise UserError(f'two images are named {double.stem}, and their pictures would be too')
    network = build_network(args.arch, args.config, args.checkpoint)
    least = network.trunk.min_size
    if args.size < least:
        raise UserError(f'--size must be at least {least}, got {args.size}')
    photos = [read_image(path, args.point, args.size, least) for path in paths]
    twin = None
    if network.report is None:
        print('RANDOM WEIGHTS: no --checkpoint was given, so these pictures show no training', file=sys.stderr)
    else:
        print(f'{network.report}\nin brackets: the same network with random weights')
        twin = random_twin(network.trunk)
    source = Path(network.report.checkpoint).name if network.report else 'RANDOM WEIGHTS'
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    try:
        for photo in photos:
            draw(photo, network, twin, source, args.heads, out)
            done += 1
    except KeyboardInterrupt as interrupt:
        stop = cli.stop_of(interrupt)
        message = f'{stop} after {done} of {len(paths)} images, whose pictures are in {out}'
        raise cli.Stopped(stop.number, message) from None


if __name__ == '__main__':
    cli.run(main)
