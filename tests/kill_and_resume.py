"""Kill a small training at random moments and resume it, over and over: it must end with the weights of one left alone.

The imports, which take most of a short run's time, are done once: each run is a forked process.

Example:
    python tests/kill_and_resume.py --cycles 200 --out /tmp/cycles
"""

from __future__ import annotations

import argparse
import os
import random
import re
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import mmseg.apis  # noqa: F401  what a run imports
import torch

from cvt_dense.datasets.shapes_files import make_dataset
from cvt_dense.engine import launch  # noqa: F401  likewise

ROOT = Path(__file__).resolve().parents[1]
ITERS = 24
OPTIONS = [
    f'train_cfg.max_iters={ITERS}',
    'train_cfg.val_interval=8',
    'default_hooks.checkpoint.interval=3',
    'default_hooks.checkpoint.max_keep_ckpts=2',
    'default_hooks.logger.interval=1',
    'param_scheduler.0.end=5',
    'train_dataloader.batch_size=2',
    'val_dataloader.batch_size=2',
    'model.data_preprocessor.size=(64,64)',
    'model.backbone.drop_path_rate=0.3',
    'randomness.seed=7',
]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Run:
    """A training in a forked process of a session of its own."""

    def __init__(self, work_dir: Path, workers: int) -> None:
        self.log = work_dir.with_suffix('.log')
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            options = [*OPTIONS]
            for loader in ('train_dataloader', 'val_dataloader'):
                options += [f'{loader}.num_workers={workers}', f'{loader}.persistent_workers={workers > 0}']
            config = str(ROOT / 'configs/upernet_cvttiny_shapes.py')
            sys.argv = ['train.py', config, '--resume', '--ema', '--work-dir', str(work_dir), '--cfg-options', *options]
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')

    def wait(self, seconds: float) -> int | None:
        """The exit code, negative for a signal; None if it still runs then."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None

    def left_over(self, seconds: float = 3.0) -> list[int]:
        """Processes of the session that are still there after some seconds."""
        deadline = time.monotonic() + seconds
        while (left := _session(self.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


def _session(number: int) -> list[int]:
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rpartition(')')[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == number and fields[0] != 'Z':
            found.append(int(stat.parent.name))
    return found


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    """Weights in training and their average at the end of a run."""
    saved = torch.load(work_dir / f'iter_{ITERS}.pth', weights_only=False)
    return saved['state_dict'] | {f'ema.{name}': tensor for name, tensor in saved['ema_state_dict'].items()}


def noted_iteration(work_dir: Path) -> int:
    """The iteration of the checkpoint that a resume goes on from; 0 if there is none."""
    note = work_dir / 'last_checkpoint'
    noted = note.read_text() if note.exists() else ''
    return torch.load(noted, weights_only=False)['meta']['iter'] if noted else 0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cycles', type=int, default=10)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(arguments)
    draw = random.Random(args.seed)
    args.out.mkdir(parents=True)
    make_dataset(args.out / 'shapes', train=8, val=4, size=64)
    os.environ |= dict(SHAPES_ROOT=str(args.out / 'shapes'), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')

    start = time.monotonic()
    assert Run(args.out / 'whole', 0).wait(600) == 0, 'the uninterrupted run failed'
    whole = time.monotonic() - start
    expected = weights(args.out / 'whole')

    killed: Counter[str] = Counter()
    finished, known = 0, 0
    while sum(killed.values()) < args.cycles or known:
        work_dir, workers = args.out / f'run_{finished}', draw.choice([0, 1, 2])
        run = Run(work_dir, workers)
        is_enough = sum(killed.values()) >= args.cycles
        number = None
        code = run.wait(600 if is_enough else draw.uniform(0, 0.5 * whole))
        if code is None:
            number, to_all = draw.choice(SIGNALS), draw.random() < 0.5
            (os.killpg if to_all else os.kill)(run.pid, number)
            code = run.wait(60)
            assert code in (0, -number, 128 + number), f'{number.name} ended {work_dir} with {code}: see {run.log}'
            killed[f'{number.name}{" to the group" if to_all else ""}'] += 1
        else:
            assert code == 0, f'{work_dir} ended by itself with {code}: see {run.log}'
        text = run.log.read_text()
        if number != signal.SIGKILL:  # its workers may have a word before they are gone too
            assert 'Traceback' not in text, f'a stack trace: see {run.log}'
        assert not run.left_over(), f'processes are left over: {_session(run.pid)}'
        resumed = re.search(r'resumed epoch: \d+, iter: (\d+)', text)
        assert resumed is None or int(resumed[1]) == known, f'resumed from {resumed[1]} and not from {known}'
        saved = re.search(r'stopped by \w+ after iteration (\d+)', text)
        noted = noted_iteration(work_dir)
        assert noted >= known, f'{noted} iterations are left of {known}'
        assert saved is None or noted == int(saved[1]), f'{noted} iterations are saved of {saved[1]}'
        known = noted
        print(f'{sum(killed.values())}: exit code {code}, iteration {known} of {ITERS}', flush=True)
        if code == 0:
            ours = weights(work_dir)
            assert ours.keys() == expected.keys()
            assert all(torch.equal(ours[name], expected[name]) for name in expected), f'{work_dir} differs'
            assert len(list(work_dir.glob('best_*.pth'))) == 1, f'{work_dir} has not one best checkpoint'
            finished, known = finished + 1, 0
    print(f'{finished} runs were ended {sum(killed.values())} times ({dict(killed)}) and lost nothing')


if __name__ == '__main__':
    main()
