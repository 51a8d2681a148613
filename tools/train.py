"""Train a detector or segmentor.

Example:
    python tools/train.py configs/maskrcnn_cvt21_fpn_coco.py
    python tools/train.py configs/upernet_cvt13_ade20k.py --amp --cfg-options train_dataloader.batch_size=4
"""

from __future__ import annotations

import argparse
import signal
import sys

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports, which take seconds, is no stack trace

from cvt_dense import cli

cli.need('mmengine', 'mmcv')  # before the imports that would end in a stack trace

from cvt_dense.datasets.check import build_data
from cvt_dense.datasets.paths import check_data
from cvt_dense.engine import launch
from cvt_dense.engine.resume import make_resumable
from cvt_dense.engine.run_checkpoints import check_checkpoint, check_weights, set_resume
from cvt_dense.engine.work_dir import claimed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    launch.add_common_arguments(parser)
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision: bfloat16, or float16 on a GPU that lacks it'
    )
    parser.add_argument('--ema', action='store_true', help='evaluate an exponential moving average of the weights')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument('--tensorboard', action='store_true', help='log to TensorBoard too: scalars and pictures')
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
    cfg = launch.load_config(args)
    launch.hide_gpu_without_operators(cfg)
    launch.prepare_launcher(cfg)
    if args.amp:
        launch.enable_amp(cfg)
    if args.ema:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='EMAHook')]
    if args.auto_scale_lr:
        launch.enable_auto_scale_lr(cfg)
    if args.tensorboard:
        launch.log_to_tensorboard(cfg)
    splits = ('train', 'val') if cfg.get('val_cfg') else ('train',)
    check_data(cfg, splits)
    launch.use_batchnorm_without_gpu(cfg)
    if not make_resumable(cfg):
        print(f'note: runs of {cfg.train_cfg.get("type")} do not resume exactly', file=sys.stderr)
    with claimed(cfg.work_dir, cfg.launcher):
        if args.resume:
            set_resume(cfg, args.resume)
        elif cfg.get('load_from'):
            check_checkpoint(cfg.load_from)
        runner = launch.build_runner(cfg)
        build_data(runner, splits)
        launch.build_optimizer(runner)
        if cfg.get('load_from'):
            resume = bool(cfg.get('resume'))
            prefix = '' if resume else 'backbone.'  # heads may be for other classes
            check_weights(runner.model, cfg.load_from, prefix, resume)
        launch.train(runner)


if __name__ == '__main__':
    launch.run(main)
