"""Predict on images, folders, globs and videos with a trained detector or segmentor: pictures and JSON.

The model is a config with a checkpoint, or a file that tools/export.py wrote, which needs no toolkit.

Exits with 0, with 1 if some inputs had to be skipped, and with 2 if it could not start or not go on.

Example:
    python tools/predict.py configs/maskrcnn_cvt21_fpn_coco.py CHECKPOINT photo.jpg photos/ --out predictions
    python tools/predict.py configs/upernet_cvt13_ade20k.py CHECKPOINT 'photos/**' film.mp4 --batch-size 4
    python tools/predict.py model.onnx photo.jpg photos/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cvt_dense import cli

cli.need('cv2', 'matplotlib')  # before the imports that would end in a stack trace

from cvt_dense.apis import FilePredictor, Output, choose_device, find_inputs, predict_files
from cvt_dense.apis.inputs import printable
from cvt_dense.apis.items import AnyPredictor
from cvt_dense.apis.runtimes import RUNTIMES
from cvt_dense.errors import UserError
from cvt_dense.visualization.painter import SCORE_THRESHOLD


class ConfigOptions(argparse.Action):
    """mmengine's action for overrides of a config, which exported files have none of."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *given: Any) -> None:
        cli.need('mmengine')
        from mmengine.config import DictAction

        DictAction(self.option_strings, self.dest, nargs='+')(parser, namespace, *given)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='%(prog)s (CONFIG CHECKPOINT | MODEL.onnx | MODEL.xml) INPUT [INPUT ...] [OPTION ...]',
    )
    parser.add_argument(
        'model', metavar='MODEL', help='config file, and then the checkpoint that training wrote; or an exported file'
    )
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='image, video, folder, or glob in quotes')
    parser.add_argument('--out', metavar='DIR', help='folder to write to (default: work_dirs/MODEL NAME/predictions)')
    parser.add_argument(
        '--score-thr', type=float, metavar='SCORE', help=f'drop instances that score less (default: {SCORE_THRESHOLD})'
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='images of one size at a time')
    parser.add_argument(
        '--precision',
        choices=['float32', 'bfloat16'],
        default='float32',
        help='of an .xml file on a CPU (default: float32)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='override settings of the config: KEY=VALUE ..., e.g. model.test_cfg.rcnn.max_per_img=20',
    )
    return parser.parse_args()


def is_exported(word: str) -> bool:
    """Whether an argument names an exported file."""
    return word.endswith(tuple(RUNTIMES))


def check_arguments(args: argparse.Namespace, detects: bool) -> None:
    """Check that the arguments go together.

    Raises:
        UserError: If one has a value that it cannot have, or does not go with the model.
    """
    if args.batch_size < 1:
        raise UserError(f'--batch-size must be at least 1, got {args.batch_size}')
    if args.score_thr is not None and not detects:
        raise UserError('--score-thr is for detection: a segmentor gives each pixel its best class')
    if args.score_thr is not None and not 0 <= args.score_thr <= 1:
        raise UserError(f'--score-thr must lie between 0 and 1, got {args.score_thr}')


def exported(args: argparse.Namespace) -> tuple[AnyPredictor, list[Path], Path]:
    """An exported file's predictor, the inputs, and the folder to write to.

    Raises:
        UserError: If the file cannot be used, or an argument not for it.
    """
    if args.cfg_options:
        raise UserError(f'--cfg-options is for configs: {args.model} stays as it was exported')
    paths = find_inputs(args.inputs)
    predictor = FilePredictor(args.model, args.device, args.precision)
    check_arguments(args, predictor.detects)
    return predictor, paths, Path(args.out or Path('work_dirs', Path(args.model).stem, 'predictions'))


def trained(args: argparse.Namespace) -> tuple[AnyPredictor, list[Path], Path]:
    """A trained model's predictor, the inputs, and the folder to write to.

    Raises:
        UserError: If the config or the checkpoint cannot be used, or an argument not for them.
    """
    cli.check_installed('mmengine')
    from cvt_dense.apis import Predictor
    from cvt_dense.engine.config import load_config
    from cvt_dense.engine.devices import hide_gpu_without_operators

    if len(args.inputs) < 2:
        raise UserError(f'{args.model} is no exported file ({", ".join(RUNTIMES)}): give CONFIG CHECKPOINT INPUT …')
    if args.precision != 'float32':
        raise UserError('--precision is for exported files')
    cfg = load_config(args.model, args.cfg_options)
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UserError(f'config {args.model} is one of {cfg.default_scope}; this tool is for mmdet and mmseg')
    check_arguments(args, cfg.default_scope == 'mmdet')
    checkpoint, *inputs = args.inputs
    paths = find_inputs(inputs)
    hide_gpu_without_operators(cfg)
    predictor = Predictor(cfg, checkpoint, choose_device(args.device))
    return predictor, paths, Path(args.out or Path(cfg.work_dir, 'predictions'))


def main() -> None:
    args = parse_args()
    predictor, paths, folder = (exported if is_exported(args.model) else trained)(args)
    threshold = SCORE_THRESHOLD if args.score_thr is None else args.score_thr
    output = Output(folder, predictor, threshold)
    number = predict_files(predictor, paths, output, args.batch_size)
    skipped = f', {number} skipped' if number else ''
    print(f'inputs: {len(paths)}{skipped}; pictures and JSON files are in {printable(output.folder)}')
    if number:
        sys.exit(1)


if __name__ == '__main__':
    if any(map(is_exported, sys.argv[1:])):
        cli.run_and_note_signals(main)
    cli.need('mmengine')
    from cvt_dense.engine import launch

    launch.run(main)
