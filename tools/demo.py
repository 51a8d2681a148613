"""The demo: make a small data set, train Mask R-CNN with a small CvT on it, evaluate it and draw its predictions.

Needs no network and no GPU (but uses one); takes some minutes on two CPU cores. Stopped while it trains, it saves what
it has, and the same command goes on from there.

Example:
    python tools/demo.py --out work_dirs/demo
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from cvt_dense import cli

cli.need('mmengine', 'matplotlib', 'skimage')  # before the imports that would end in a stack trace

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from cvt_dense.apis import Output, Predictor, choose_device
from cvt_dense.apis.output import write_image
from cvt_dense.datasets.shapes import CLASSES
from cvt_dense.datasets.shapes_files import make_dataset
from cvt_dense.engine import launch
from cvt_dense.engine.config import load_config
from cvt_dense.engine.devices import hide_gpu_without_operators
from cvt_dense.errors import UserError
from cvt_dense.signals import Interrupted
from cvt_dense.visualization.curves import last_metric, read_history
from cvt_dense.visualization.painter import SCORE_THRESHOLD

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'maskrcnn_cvttiny_fpn_shapes.py'
SIZE = 160  # side of a scene in pixels
COLUMNS = 4
GRID = 'predictions.png'  # written last


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='work_dirs/demo', help='folder for everything that the demo makes')
    parser.add_argument('--train', type=int, default=800, help='training scenes')
    parser.add_argument('--val', type=int, default=100, help='held-out scenes')
    parser.add_argument('--epochs', type=int, help="times through the training scenes (default: the config's)")
    parser.add_argument('--pictures', type=int, default=12, help='held-out scenes to draw')
    return parser.parse_args()


def train(out: Path, data: Path, epochs: int | None, resume: bool) -> Config:
    """Train and evaluate by the demo's config, which is returned.

    Raises:
        Interrupted: If a signal says to stop; what was trained is saved then.
    """
    os.environ['SHAPES_ROOT'] = str(data)
    options = {}
    if epochs:
        options = {'train_cfg.max_epochs': epochs, 'param_scheduler.1.end': epochs, 'train_cfg.val_interval': epochs}
    cfg = load_config(CONFIG, options, work_dir=str(out))
    hide_gpu_without_operators(cfg)
    try:
        launch.train(cfg, 'auto' if resume else None)
    except Interrupted as stop:
        if not (out / 'last_checkpoint').exists():
            raise
        raise Interrupted(stop.number, f'{str(stop).partition(";")[0]}; the same command goes on from there') from None
    return cfg


def draw_predictions(cfg: Config, images: list[Path], folder: Path) -> Path:
    """Predict on images with what was trained: a picture of each, JSON files, and a picture of all of them in a grid.

    Returns:
        The path of the grid.
    """
    predictor = Predictor(cfg, find_latest_checkpoint(cfg.work_dir), choose_device(None))
    output = Output(folder, predictor, SCORE_THRESHOLD)
    pictures = []
    for number, path in enumerate(images, 1):
        item = predictor.load(path, number, path.stem)
        name = f'pictures/{path.stem}.jpg'
        pictures.append(output.add(item, *predictor.predict([item]), name))
        write_image(folder / name, pictures[-1])
    output.save()
    grid = folder.parent / GRID
    write_image(grid, tile(pictures, COLUMNS))
    return grid


def tile(pictures: list[np.ndarray], columns: int, gap: int = 8) -> np.ndarray:
    """Lay pictures of one size out in rows, on white: ``(H, W, 3)`` each to one ``(H', W', 3)``."""
    framed = [cv2.copyMakeBorder(p, gap, gap, gap, gap, cv2.BORDER_CONSTANT, value=(255,) * 3) for p in pictures]
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    return np.vstack([np.hstack(framed[i : i + columns]) for i in range(0, len(framed), columns)])


def main() -> None:
    args = parse_args()
    if min(args.train, args.val, args.pictures) < 1 or (args.epochs is not None and args.epochs < 1):
        raise UserError('--train, --val, --epochs and --pictures must be at least 1')
    start = time.monotonic()
    out = Path(args.out).absolute()
    data = out / 'shapes'
    print(f'demo 1/3: {args.train} + {args.val} scenes with {", ".join(CLASSES)} in {data}', flush=True)
    try:
        make_dataset(data, train=args.train, val=args.val, size=SIZE, seed=0)
    except UserError as error:
        raise UserError(f'{error} (or choose another folder with --out)') from error
    print('demo 2/3: training and evaluation', flush=True)
    resume = (out / 'last_checkpoint').exists() and not (out / GRID).exists()  # it was stopped
    (out / GRID).unlink(missing_ok=True)
    cfg = train(out, data, args.epochs, resume)
    print(f'demo 3/3: pictures in {out}', flush=True)
    scalars = read_history(out)
    images = sorted((data / 'images' / 'validation').iterdir())[: args.pictures]
    grid = draw_predictions(cfg, images, out / 'predictions')
    print(
        f'\nDone in {(time.monotonic() - start) / 60:.1f} minutes.\n'
        f'  mask AP (0.50:0.95) on {args.val} held-out images: {last_metric(scalars, "coco/segm_mAP"):.3f}\n'
        f'  box AP: {last_metric(scalars, "coco/bbox_mAP"):.3f}\n'
        f'  predictions: {grid}\n'
        f'  losses and AP: {out / "curves.png"}'
    )


if __name__ == '__main__':
    launch.run(main)
