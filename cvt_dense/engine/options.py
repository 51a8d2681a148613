"""What the options of the command line change in a config."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction

from ..errors import UserError
from ..registry import each_evaluator, type_name
from .config import add_hook, load_config


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share, under the names of OpenMMLab's tools."""
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG NAME)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: KEY=VALUE ..., e.g. train_dataloader.batch_size=4',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes the rank as an argument, torchrun in the environment.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config_of(args: argparse.Namespace) -> Config:
    """Read the config that the arguments of :func:`add_common_arguments` name, with their overrides.

    Raises:
        UserError: As :func:`~cvt_dense.engine.config.load_config` does.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return load_config(args.config, args.cfg_options, args.work_dir, args.launcher)


def enable_amp(cfg: Config) -> None:
    """Switch the optimizer wrapper to automatic mixed precision: bfloat16 where supported, else scaled float16.

    RoI extractors and deformable attention stay in float32 (see :mod:`cvt_dense.engine.precision`).

    Raises:
        UserError: If the config's optimizer wrapper is missing or a special one.
    """
    wrapper = type_name(cfg.get('optim_wrapper'), 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper') or not cfg.get('optim_wrapper'):
        which = f'not with the {wrapper} of the config' if cfg.get('optim_wrapper') else 'and the config sets none'
        raise UserError(f'--amp works with OptimWrapper, {which}')
    for setting in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(setting, None)
    if not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False):
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    else:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
    add_hook(cfg, 'Float32OperatorsHook')


def enable_ema(cfg: Config) -> None:
    """Evaluate an exponential moving average of the weights, as the config's own ``EMAHook`` does it if it has one."""
    add_hook(cfg, 'EMAHook')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate by the batch size over the config's ``auto_scale_lr.base_batch_size``.

    Raises:
        UserError: If the config does not say for which batch size its rate is.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
    cfg.auto_scale_lr.enable = True


def draw_predictions(cfg: Config, folder: str) -> None:
    """Let a test run write pictures of ground truth and predictions, side by side, into a folder."""
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), ConfigDict(type='PicturesHook', folder=folder)]


def dump_predictions(cfg: Config, out: str) -> None:
    """Let a test run write its predictions: a pickle for detection, a folder of label maps for segmentation.

    Raises:
        UserError: If ``out`` does not end in ``.pkl`` for detection, or does for segmentation.
    """
    evaluators = each_evaluator(cfg.get('test_evaluator'))
    is_pickle = Path(out).suffix in ('.pkl', '.pickle')
    if cfg.default_scope == 'mmdet':
        if not is_pickle:
            raise UserError(f'--out of a detection config must be a .pkl file, got {out}')
        others = [evaluator for evaluator in evaluators if type_name(evaluator) != 'DumpDetResults']
        cfg.test_evaluator = [*others, dict(type='DumpDetResults', out_file_path=out)]
    elif is_pickle:
        raise UserError(f'--out of a segmentation config must be a folder for label maps, got {out}')
    else:
        for evaluator in evaluators:
            evaluator.output_dir = out
            evaluator.keep_results = True  # CityscapesMetric would clear the folder
