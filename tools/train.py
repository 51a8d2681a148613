"""Train a detector or segmentor.

Example:
    python tools/train.py configs/maskrcnn_cvt21_fpn_coco.py
    python tools/train.py configs/upernet_cvt13_ade20k.py --amp --cfg-options train_dataloader.batch_size=4
"""

from __future__ import annotations

import argparse
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports, which take seconds, is no stack trace

from cvt_dense import cli

cli.need('mmengine', 'mmcv')  # before the imports that would end in a stack trace

from cvt_dense.engine import launch, options
from cvt_dense.engine.command import command
from cvt_dense.engine.log_to import BACKENDS, log_to


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_common_arguments(parser)
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision: bfloat16, or float16 on a GPU that lacks it'
    )
    parser.add_argument('--ema', action='store_true', help='evaluate an exponential moving average of the weights')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--log-to',
        nargs='+',
        choices=list(BACKENDS),
        default=[],
        metavar='NAME',
        help=f'log scalars and pictures there too: {", ".join(BACKENDS)}',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='go on from a checkpoint; without PATH from the newest one in the work directory',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = options.load_config_of(args)
    launch.prepare_devices(cfg)
    if args.amp:
        options.enable_amp(cfg)
    if args.ema:
        options.enable_ema(cfg)
    if args.auto_scale_lr:
        options.enable_auto_scale_lr(cfg)
    if args.log_to:
        log_to(cfg, args.log_to)
    command.remember(cfg)
    launch.train(cfg, args.resume)


if __name__ == '__main__':
    launch.run(main)
