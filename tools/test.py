"""Evaluate a trained detector or segmentor.

Example:
    python tools/test.py configs/maskrcnn_cvt21_fpn_coco.py work_dirs/maskrcnn_cvt21_fpn_coco/epoch_12.pth
"""

from __future__ import annotations

import argparse
import copy
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports, which take seconds, is no stack trace

from cvt_dense import cli

cli.need('mmengine', 'mmcv')  # before the imports that would end in a stack trace

from cvt_dense.engine import launch, options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file that training wrote')
    parser.add_argument(
        '--out', help='write the predictions: a .pkl file for detection, a folder of label maps for segmentation'
    )
    parser.add_argument('--show-dir', metavar='DIR', help='write pictures of the predictions')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = options.load_config_of(args)
    launch.prepare_devices(cfg)
    asked = copy.deepcopy(cfg)
    if args.show_dir:
        options.draw_predictions(cfg, args.show_dir)
    if args.out:
        options.dump_predictions(cfg, args.out)
    launch.test(cfg, args.checkpoint, asked)


if __name__ == '__main__':
    launch.run(main)
