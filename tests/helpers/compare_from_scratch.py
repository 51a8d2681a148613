"""Small backbones side by side, trained from scratch: networks, learning rates and seeds, by tools/train.py each.

The configs are those of configs/comparison. Runs that are done are not repeated, so that more may be asked for later.

Example:
    CAMVID_ROOT=data/camvid python tests/helpers/compare_from_scratch.py --task camvid --out runs/camvid \
        --networks cvt cvt-recipe swin resnet --rates 1e-3 2e-3 --seeds 0 1 2
    CAMVID_ROOT=data/camvid python tests/helpers/compare_from_scratch.py --task camvid --out runs/camvid \
        --folds 1/5 2/5 3/5 4/5 5/5 --seeds 0
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from folds import Fold, link_fold
from mmengine.config import Config
from paths import ROOT

from cvt_dense.visualization.curves import last_metric, read_history

NETWORKS = {'cvt': 'cvtsmall', 'cvt-recipe': 'cvtsmall', 'swin': 'swinsmall', 'resnet': 'resnetsmall'}


class Task(NamedTuple):
    """A task: its configs by network, the options that make it so many iterations or epochs, and its metric."""

    config: str
    lengths: tuple[str, ...]
    metric: str
    percent: float  # what the metric is multiplied by


TASKS = {
    'camvid': Task(
        'upernet_{}_camvid{}.py',
        ('train_cfg.max_iters', 'train_cfg.val_interval', 'param_scheduler.1.end'),
        'mIoU',
        1,
    ),
    'nuclei': Task(
        'maskrcnn_{}_nuclei{}.py',
        ('train_cfg.max_epochs', 'train_cfg.val_interval', 'param_scheduler.1.end'),
        'coco/segm_mAP',
        100,
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=TASKS, required=True)
    parser.add_argument('--out', type=Path, required=True, help='folder for the runs')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS), help='default: all')
    parser.add_argument('--rates', nargs='+', type=float, help="learning rates (default: the config's)")
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument(
        '--folds',
        nargs='+',
        type=Fold.parse,
        metavar='K/N',
        default=[None],
        help='camvid: evaluate on the K-th of N parts of each video and train on the rest (default: the given split)',
    )
    parser.add_argument('--length', type=int, help="iterations or epochs (default: the config's)")
    parser.add_argument('--cfg-options', nargs='+', default=[], help='more options for all of them')
    return parser.parse_args()


def config_of(task: Task, network: str) -> Path:
    suffix = '_scratch' if network.endswith('-recipe') else ''
    return ROOT / 'configs/comparison' / task.config.format(NETWORKS[network], suffix)


def train(
    task: Task,
    network: str,
    rate: float,
    seed: int,
    fold: Fold | None,
    length: int | None,
    options: Sequence[str],
    out: Path,
) -> float:
    """Train a network; returns its metric at the end, in percent."""
    parts = [network, f'{rate:g}', seed, length, None if fold is None else fold.name]
    work_dir = out / '_'.join(str(part) for part in parts if part is not None)
    lengths = [] if length is None else [f'{option}={length}' for option in task.lengths]
    settings = [f'optim_wrapper.optimizer.lr={rate}', f'randomness.seed={seed}', *lengths, *options]
    done = work_dir / 'done'
    if done.exists() and done.read_text() != '\n'.join(settings):
        raise SystemExit(f'error: {work_dir} is of a run with other options; choose another folder with --out')
    if not done.exists():
        command = [sys.executable, ROOT / 'tools/train.py', config_of(task, network), '--work-dir', work_dir]
        env = os.environ.copy()
        if fold is not None:
            try:
                env['CAMVID_ROOT'] = str(link_fold(Path(env.get('CAMVID_ROOT', 'data/camvid')), fold, out / 'folds'))
            except FileNotFoundError as error:
                raise SystemExit(f'error: {error}; say where CamVid is: CAMVID_ROOT=DIR') from error
        code = subprocess.run([*map(str, command), '--cfg-options', *settings], env=env).returncode
        if code:
            raise SystemExit(code)  # it has said what is wrong
        done.write_text('\n'.join(settings))
    return task.percent * last_metric(read_history(work_dir), task.metric)


def main() -> None:
    args = parse_args()
    task = TASKS[args.task]
    if args.folds != [None] and args.task != 'camvid':
        raise SystemExit('error: --folds is for --task camvid, whose images are of videos')
    rows = []
    for network in args.networks:
        for rate in args.rates or [Config.fromfile(config_of(task, network)).optim_wrapper.optimizer.lr]:
            values = [
                train(task, network, rate, seed, fold, args.length, args.cfg_options, args.out)
                for fold in args.folds
                for seed in args.seeds
            ]
            spread = f' ± {stdev(values):.1f}' if len(values) > 1 else ''
            rows.append(
                f'| {network} | {rate:g} | {mean(values):.1f}{spread} | {", ".join(f"{v:.1f}" for v in values)} |'
            )
            print(rows[-1], flush=True)
    print('\n'.join(['', f'| network | rate | {task.metric} in % | each run |', '| --- | --- | --- | --- |', *rows]))


if __name__ == '__main__':
    main()
