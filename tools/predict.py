"""Predict on images, folders, globs and videos with a trained detector or segmentor: pictures and JSON.

Exits with 0, with 1 if some inputs had to be skipped, and with 2 if it could not start or not go on.

Example:
    python tools/predict.py configs/maskrcnn_cvt21_fpn_coco.py CHECKPOINT photo.jpg photos/ --out predictions
    python tools/predict.py configs/upernet_cvt13_ade20k.py CHECKPOINT 'photos/**' film.mp4 --batch-size 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cvt_dense import cli

cli.need('mmengine')  # before the imports that would end in a stack trace

from mmengine.config import Config, DictAction

from cvt_dense.apis import Output, Predictor, choose_device, find_inputs, predict_files
from cvt_dense.apis.inputs import printable
from cvt_dense.engine import launch
from cvt_dense.engine.config import load_config
from cvt_dense.engine.devices import hide_gpu_without_operators
from cvt_dense.errors import UserError
from cvt_dense.visualization.painter import SCORE_THRESHOLD


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file that training wrote')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='image, video, folder, or glob in quotes')
    parser.add_argument('--out', metavar='DIR', help='folder to write to (default: work_dirs/CONFIG NAME/predictions)')
    parser.add_argument(
        '--score-thr', type=float, metavar='SCORE', help=f'drop instances that score less (default: {SCORE_THRESHOLD})'
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='images of one size at a time')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: KEY=VALUE ..., e.g. model.test_cfg.rcnn.max_per_img=20',
    )
    return parser.parse_args()


def check_arguments(args: argparse.Namespace, cfg: Config) -> None:
    """Check that the arguments go together.

    Raises:
        UserError: If one has a value that it cannot have, or does not go with the config.
    """
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UserError(f'config {args.config} is one of {cfg.default_scope}; this tool is for mmdet and mmseg')
    if args.batch_size < 1:
        raise UserError(f'--batch-size must be at least 1, got {args.batch_size}')
    if args.score_thr is not None and cfg.default_scope == 'mmseg':
        raise UserError('--score-thr is for detection: a segmentor gives each pixel its best class')
    if args.score_thr is not None and not 0 <= args.score_thr <= 1:
        raise UserError(f'--score-thr must lie between 0 and 1, got {args.score_thr}')


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    check_arguments(args, cfg)
    paths = find_inputs(args.inputs)
    hide_gpu_without_operators(cfg)
    predictor = Predictor(cfg, args.checkpoint, choose_device(args.device))
    threshold = SCORE_THRESHOLD if args.score_thr is None else args.score_thr
    output = Output(Path(args.out or Path(cfg.work_dir, 'predictions')), predictor, threshold)
    number = predict_files(predictor, paths, output, args.batch_size)
    skipped = f', {number} skipped' if number else ''
    print(f'inputs: {len(paths)}{skipped}; pictures and JSON files are in {printable(output.folder)}')
    if number:
        sys.exit(1)


if __name__ == '__main__':
    launch.run(main)
