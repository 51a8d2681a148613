"""What happens to runs in real life: signals, killed processes, shared folders, full disks, divergence."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import METRICS, MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from paths import ROOT
from small_regression import Regressor
from small_regression import config as small_config
from tool_processes import ToolProcess
from torch import nn
from torch.utils.data import DataLoader

from cvt_dense.checkpoints.unpickling import mmengine_types
from cvt_dense.datasets.shapes_files import make_dataset
from cvt_dense.engine import launch, resume_notes
from cvt_dense.engine.divergence import StopWhenDivergedHook, first_invalid
from cvt_dense.engine.interruption import INTERRUPTED
from cvt_dense.engine.resume import make_resumable
from cvt_dense.engine.run_checkpoints import Start, start_from
from cvt_dense.engine.work_dir import claimed
from cvt_dense.engine.workers import init_worker
from cvt_dense.errors import UserError
from cvt_dense.signals import Interrupted, Signals, signals

UPERNET = ROOT / 'configs/upernet_cvttiny_shapes.py'
ENDLESS = ['train_cfg.max_iters=100000', 'default_hooks.logger.interval=1', 'model.data_preprocessor.size=(64,64)']
ENDLESS += ['train_dataloader.batch_size=2', 'default_hooks.checkpoint.interval=3', 'randomness.seed=0']


_started: list[subprocess.Popen | ToolProcess] = []


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """No run that a failed test has started goes on forever."""
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(autouse=True)
def _no_signal() -> Iterator[None]:
    """The process listens to signals as before after each test, and has got none."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signals.number, signals.response = 0, 'raise'


@pytest.fixture(scope='module')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    make_dataset(folder, train=8, val=4, size=64)
    return folder


class Call(Hook):
    """Calls a function before or after an iteration or a validation."""

    def __init__(self, where: str, at: int, function: Callable[[Runner], None]) -> None:
        def call(runner: Runner, *args: Any, **kwargs: Any) -> None:
            if runner.iter == at:
                function(runner)

        setattr(self, where, call)


def train(cfg: Config, *hooks: Hook, resume_from: Path | None = None) -> dict[str, torch.Tensor]:
    """Train as tools/train.py does; returns the weights."""
    make_resumable(cfg)
    runner = launch.build_runner(cfg)
    if resume_from is not None:
        start_from(runner, Start(str(resume_from), resume=True, whole=True))
    for hook in hooks:
        runner.register_hook(hook)
    with mmengine_types():
        launch.run_training(runner)
    return runner.model.state_dict()


def send(number: int) -> Callable[[Runner], None]:
    return lambda runner: os.kill(os.getpid(), number)


@pytest.mark.parametrize(('by_epoch', 'at'), [(True, 1), (True, 8), (False, 4)])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_iteration_and_a_resume_ends_as_if_there_had_been_none(
    tmp_path: Path, by_epoch: bool, at: int, number: signal.Signals
) -> None:
    """Within the first and the second epoch of 6 batches."""
    expected = train(config(tmp_path / 'whole', by_epoch))
    signals.listen()
    with pytest.raises(Interrupted, match=f'{number.name} after iteration {at + 1} of .*{INTERRUPTED} with --res') as e:
        train(config(tmp_path / 'cut', by_epoch), Call('after_train_iter', at, send(number)))
    assert e.value.exit_code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    _forget()
    weights = train(config(tmp_path / 'cut', by_epoch), resume_from=tmp_path / 'cut' / INTERRUPTED)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not (tmp_path / 'cut' / INTERRUPTED).exists(), 'an older checkpoint is left as if it were the newest'


def config(work_dir: Path, by_epoch: bool = False, workers: int = 0, **settings: Any) -> Config:
    """The little model of test_resume.py, with few checkpoints."""
    cfg = small_config(work_dir, by_epoch, workers)
    interval = 1 if by_epoch else 100
    cfg.default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=interval))
    cfg.merge_from_dict(settings)
    return cfg


def _forget() -> None:
    signals.number, signals.response = 0, 'raise'


def test_a_signal_waits_until_accumulated_gradients_are_used(tmp_path: Path) -> None:
    settings = {'optim_wrapper.accumulative_counts': 4}
    signals.listen()
    with pytest.raises(Interrupted, match='after iteration 8 of 15'):
        train(config(tmp_path, **settings), Call('after_train_iter', 5, send(signal.SIGTERM)))


def test_a_signal_before_the_first_iteration_ends_the_run_at_once(tmp_path: Path) -> None:
    signals.listen()
    expected = 'SIGTERM before the first iteration; no checkpoint has been written yet'
    with pytest.raises(Interrupted, match=expected) as e:
        train(config(tmp_path), Call('before_run', 0, send(signal.SIGTERM)))
    assert e.value.exit_code == 143
    assert not list(tmp_path.glob('*.pth'))


def test_a_signal_while_a_resume_starts_leaves_the_checkpoint_as_it_is(tmp_path: Path) -> None:
    train(config(tmp_path, **{'default_hooks.checkpoint.interval': 5, 'train_cfg.max_iters': 5}))
    content = (tmp_path / 'iter_5.pth').read_bytes()
    signals.listen()
    with pytest.raises(Interrupted, match=r'before the first iteration; go on from .+iter_5\.pth'):
        train(
            config(tmp_path),
            Call('after_load_checkpoint', 0, send(signal.SIGTERM)),
            resume_from=tmp_path / 'iter_5.pth',
        )
    assert (tmp_path / 'iter_5.pth').read_bytes() == content
    assert not (tmp_path / INTERRUPTED).exists()


@pytest.mark.parametrize(('by_epoch', 'max_keep'), [(False, 1), (False, 2), (True, 1)])
def test_a_resume_in_another_folder_deletes_nothing_there(tmp_path: Path, by_epoch: bool, max_keep: int) -> None:
    """Its checkpoint names the best one of that folder, and those that were to be deleted next."""

    def settings(name: str) -> Config:
        cfg = validating(tmp_path / name, by_epoch=by_epoch)
        last = dict(max_epochs=2) if by_epoch else dict(max_iters=10)
        cfg.merge_from_dict(dict(train_cfg=dict(val_interval=1 if by_epoch else 5, **last)))
        step = 1 if by_epoch else 5
        cfg.default_hooks.checkpoint.update(
            save_best='progress', rule='greater', interval=step, max_keep_ckpts=max_keep, published_keys=['state_dict']
        )
        return cfg

    train(settings('first'))
    there = {path: path.read_bytes() for path in (tmp_path / 'first').glob('*.pth')}
    assert any(path.name.startswith('best_') for path in there)
    cfg = settings('second')
    cfg.train_cfg.update(dict(max_epochs=3) if by_epoch else dict(max_iters=15))
    newest = tmp_path / 'first' / ('epoch_2.pth' if by_epoch else 'iter_10.pth')
    train(cfg, resume_from=newest)
    best = [path for path in (tmp_path / 'second').glob('best_*.pth') if '-' not in path.name]  # not the published
    assert len(best) == 1
    assert {path: path.read_bytes() for path in (tmp_path / 'first').glob('*.pth')} == there


def test_the_best_checkpoint_of_a_folder_that_was_moved_is_replaced(tmp_path: Path) -> None:
    for name, last in (('run', 10), ('moved', 15)):
        cfg = validating(tmp_path / name)
        cfg.train_cfg.update(max_iters=last, val_interval=5)
        cfg.default_hooks.checkpoint.update(save_best='progress', rule='greater', interval=5)
        train(cfg, resume_from=tmp_path / 'moved/iter_10.pth' if name == 'moved' else None)
        if name == 'run':
            (tmp_path / 'run').rename(tmp_path / 'moved')
    assert [path.name for path in (tmp_path / 'moved').glob('best_*.pth')] == ['best_progress_iter_15.pth']


def test_a_resume_says_what_of_the_config_it_does_not_take(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(resume_notes, 'print_log', lambda line, *args, **kwargs: lines.append(line))
    short = {'train_cfg.max_iters': 5, 'default_hooks.checkpoint.interval': 5}
    train(config(tmp_path, **short))
    newest = tmp_path / 'iter_5.pth'
    train(config(tmp_path), resume_from=newest)
    assert lines == []
    changed = {
        'optim_wrapper.optimizer.lr': 0.5,
        'param_scheduler.end': 14,
        'optim_wrapper.optimizer.weight_decay': 0.3,
    }
    train(config(tmp_path, **changed), resume_from=newest)
    (line,) = lines
    assert (
        'weight_decay 0.01, in the config 0.3; lr 0.1, in the config 0.5; param_scheduler.0.total_iters 11, in' in line
    )
    # The advice is obeyed: the schedule is that of the config.
    lines.clear()
    cfg = config(tmp_path / 'new', **changed)
    make_resumable(cfg)
    runner = launch.build_runner(cfg)
    start_from(runner, Start(str(newest)))
    launch.run_training(runner)
    assert lines == []
    assert runner.param_schedulers[0].end == 14
    assert runner.optim_wrapper.optimizer.param_groups[0]['initial_lr'] == 0.5
    assert f'load_from={newest}' in line


@pytest.mark.parametrize('ema_goes_on', [True, False])
def test_a_resume_without_the_average_says_that_it_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_goes_on: bool
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(resume_notes, 'print_log', lambda line, *args, **kwargs: lines.append(line))
    train(config(tmp_path, **{'train_cfg.max_iters': 5, 'default_hooks.checkpoint.interval': 5}))
    cfg = config(tmp_path)
    if not ema_goes_on:
        cfg.custom_hooks = []
    train(cfg, resume_from=tmp_path / 'iter_5.pth')
    assert ['training goes on from the average; with --ema it goes on' in line for line in lines] == [True] * (
        not ema_goes_on
    )


@METRICS.register_module()
class Metric(BaseMetric):
    """Is sent a signal in the validation after an iteration, while it looks at predictions or at the end."""

    def __init__(self, at: int = 0, where: str = '', swallow: bool = False) -> None:
        super().__init__()
        self.at, self.where, self.swallow = at, where, swallow

    def _send(self, where: str) -> None:
        if where == self.where and MessageHub.get_current_instance().get_info('iter') + 1 == self.at:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:
                if not self.swallow:
                    raise
                raise SyntaxError('wrong') from None

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)
        self._send('process')

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        self._send('compute')
        return dict(progress=MessageHub.get_current_instance().get_info('iter'))


def validating(work_dir: Path, by_epoch: bool = False, **metric: Any) -> Config:
    cfg = config(work_dir, by_epoch)
    loader = dict(cfg.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    metric = dict(type='Metric', **metric)
    cfg.update(val_cfg=dict(type='ValLoop'), val_dataloader=loader, val_evaluator=metric)
    cfg.train_cfg.val_interval = 7
    cfg.model.type = 'Validated'
    return cfg


@MODELS.register_module()
class Validated(Regressor):
    """Predicts too."""

    def forward(self, inputs: Any, mode: str = 'loss') -> Any:
        return super().forward(inputs, mode) if mode == 'loss' else [torch.zeros(1)]


@pytest.mark.parametrize('metric', [dict(where='process'), dict(where='compute'), dict(where='compute', swallow=True)])
def test_a_signal_in_a_validation_saves_the_weights_in_training_and_a_resume_validates(
    tmp_path: Path, metric: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not their average, which EMAHook swaps them for while it validates."""
    expected = train(validating(tmp_path / 'whole'))
    signals.listen()
    with pytest.raises(Interrupted, match=f'after iteration 7 of 15; go on from .*{INTERRUPTED}'):
        train(validating(tmp_path / 'cut', at=7, **metric))
    _forget()
    validated: list[int] = []
    monkeypatch.setattr(Metric, '_send', lambda self, where: validated.append(1))
    weights = train(validating(tmp_path / 'cut'), resume_from=tmp_path / 'cut' / INTERRUPTED)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert len(validated) == 3 * 7, 'three validations of 6 batches and a result: after iterations 7, 14 and 15'


def test_the_best_checkpoint_is_there_until_a_better_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = validating(tmp_path)
    cfg.default_hooks.checkpoint.update(save_best='progress', rule='greater')
    there: list[list[str]] = []
    save = Runner.save_checkpoint

    def look_and_save(self: Runner, *args: Any, **kwargs: Any) -> None:
        there.append(sorted(path.name for path in tmp_path.glob('best_*.pth')))
        save(self, *args, **kwargs)

    monkeypatch.setattr(Runner, 'save_checkpoint', look_and_save)
    train(cfg)
    assert ['best_progress_iter_7.pth'] in there
    assert ['best_progress_iter_14.pth'] in there
    assert [] not in there[1:], 'the best checkpoint was deleted before the next one was whole'
    assert [path.name for path in tmp_path.glob('best_*.pth')] == ['best_progress_iter_15.pth']


def test_what_is_on_disk_is_not_saved_again(tmp_path: Path) -> None:
    settings = {'default_hooks.checkpoint.interval': 4}
    signals.listen()
    with pytest.raises(Interrupted, match=r'after iteration 4 of 15; go on from .*iter_4\.pth'):
        train(config(tmp_path, **settings), Call('after_train_iter', 3, send(signal.SIGTERM)))
    assert not (tmp_path / INTERRUPTED).exists()


def test_the_same_signal_sent_twice_is_one_and_a_later_one_ends_the_process_at_once() -> None:
    """timeout(1) sends its signal to the process and then to its group."""
    listener = Signals()
    listener.response = 'note'
    pid = os.fork()
    if pid == 0:
        listener.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(Signals.TWICE + 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As by nohup, or a job in a script's background."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.number == 0


KILLED = 'DataLoader worker (pid 7) is killed by signal: Killed. '


def test_a_killed_worker_is_named_even_if_something_made_another_error_of_it(tmp_path: Path) -> None:
    """torch raises wherever the process is; mmengine's printing of the config has a bare except."""

    def lose_worker(runner: Runner) -> None:
        try:
            raise RuntimeError(KILLED)
        except RuntimeError:
            raise SyntaxError('Failed to format the config file')  # noqa: B904  as mmengine does

    with pytest.raises(UserError, match=r'worker 7 was killed by signal: Killed, .+; no checkpoint has been written'):
        train(config(tmp_path), Call('after_train_iter', 3, lose_worker))

    def have_a_bug(runner: Runner) -> None:
        raise RuntimeError('shapes do not match')

    with pytest.raises(UserError, match='training fails at iteration 4: RuntimeError: shapes do not match; the'):
        train(config(tmp_path), Call('after_train_iter', 3, have_a_bug))


def start(
    work_dir: Path, shapes: Path, *options: str, launcher: tuple[str, ...] = ()
) -> subprocess.Popen | ToolProcess:
    """Start tools/train.py on the shapes, in a session of its own, its output in a file beside the work directory."""
    arguments = [str(ROOT / 'tools/train.py'), str(UPERNET), '--work-dir', str(work_dir)]
    arguments += [*(['--launcher', 'pytorch'] if launcher else []), '--cfg-options', *ENDLESS, *options]
    env = os.environ | dict(SHAPES_ROOT=str(shapes), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    if not launcher:
        process = ToolProcess(arguments, work_dir.with_suffix('.log'), env=env, new_session=True)
        _started.append(process)
        return process
    with open(work_dir.with_suffix('.log'), 'w') as log:
        command = [sys.executable, *launcher, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    _started.append(process)
    return process


def paste(work_dir: Path) -> subprocess.Popen:
    """Run the command that the last run has ended with in a shell elsewhere, its output in the same file."""
    log = work_dir.with_suffix('.log')
    found = re.search(r'go on from \S+ with (cd .+?) && (.+ --resume)$', log.read_text(), re.MULTILINE)
    bin_folder = Path(sys.executable).parent
    env = os.environ | dict(PATH=f'{bin_folder}:{os.environ["PATH"]}', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    with open(log, 'w') as file:  # exec, so that this process is the run itself
        line = f'{found[1]} && exec env {found[2]}'
        process = subprocess.Popen(
            ['bash', '-c', line], cwd='/', env=env, stdout=file, stderr=file, start_new_session=True
        )
    _started.append(process)
    return process


def wait_for(text: str, work_dir: Path, process: subprocess.Popen | ToolProcess, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    log = work_dir.with_suffix('.log')
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


class Large:
    """Samples that do not fit into the pipe that they are handed over by."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> bytes:
        return bytes(2**20)


def test_workers_answer_to_the_trainer_alone_and_end_with_it() -> None:
    """Left alone, torch's wait forever to write into the pipe, whose reading end they hold themselves."""
    reading, writing = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        try:
            os.setsid()
            signals.response = 'note'
            signals.listen()
            batches = iter(DataLoader(Large(), num_workers=2, worker_init_fn=init_worker, collate_fn=list))
            next(batches), next(batches)  # one of each worker: both are prepared
            os.write(writing, b'.')
            time.sleep(60)
        finally:
            os._exit(1)  # and run no other test
    try:
        os.read(reading, 1)
        workers = children(trainer)
        assert len(workers) == 2
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.killpg(trainer, number)
        assert not gone(workers, 0.5)
        assert all(_runs(worker) for worker in workers)
    finally:
        os.kill(trainer, signal.SIGKILL)
        os.waitpid(trainer, 0)
        left = [] if gone(workers, 2) else workers
        for worker in left:
            os.kill(worker, signal.SIGKILL)
    assert not left


@pytest.mark.slow
def test_processes_that_die_and_folders_in_use_end_a_run_in_one_line(tmp_path: Path, shapes: Path) -> None:
    work_dir = tmp_path / 'run'
    log = work_dir.with_suffix('.log')
    workers = ['train_dataloader.num_workers=2']

    # Another run in its folder is refused; then a worker of the first one is killed, as the kernel does without memory.
    process = start(work_dir, shapes, *workers)
    wait_for('Saving checkpoint at 3 iterations', work_dir, process)
    with (
        pytest.raises(UserError, match=rf'is in use by process {process.pid} on .+; choose another --work-dir'),
        claimed(str(work_dir)),
    ):
        pass
    wait_for('Iter(train) [     5/', work_dir, process)
    loaders = children(process.pid)
    assert len(loaders) >= 2
    os.kill(loaders[0], signal.SIGKILL)
    assert process.wait(60) == 2
    assert gone(loaders, 3)
    last = log.read_text().strip().splitlines()[-1]
    assert re.fullmatch(
        rf'error: data-loader worker {loaders[0]} was killed by signal: Killed, most likely since memory ran out: .+; '
        rf'go on from {work_dir}/iter_\d+\.pth with cd {re.escape(shlex.quote(str(ROOT)))} && .+ --resume',
        last,
    )
    assert 'Traceback' not in log.read_text()

    # Killed itself, it leaves no worker behind and gives the folder back.
    process = start(work_dir, shapes, *workers)
    wait_for('Iter(train) [     2/', work_dir, process)
    loaders = children(process.pid)
    assert len(loaders) >= 2
    process.kill()
    process.wait()
    assert gone(loaders, 3), 'data-loader workers are left behind'
    with claimed(str(work_dir)):
        pass

    # Ctrl-C, or a job manager's SIGTERM, goes to the workers too.
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start(work_dir, shapes, *workers)
        wait_for('Iter(train) [     2/', work_dir, process)
        os.killpg(process.pid, number)
        assert process.wait(60) == 128 + number, log.read_text()[-3000:]
        assert 'Traceback' not in log.read_text()
        assert 'data-loader' not in log.read_text()
        last = log.read_text().strip().splitlines()[-1]
        assert re.search(rf'stopped by {number.name} after iteration \d+ of .+\.pth with cd .+ --resume$', last)

    # The line is pasted: no setting of the run is lost, and none of the shell's is needed.
    stopped = re.search(r'after iteration (\d+) of 100000', last)[1]
    process = paste(work_dir)
    wait_for(f'resumed epoch: 0, iter: {stopped}', work_dir, process)
    wait_for('Iter(train) [', work_dir, process)
    assert '/100000]' in log.read_text()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert log.read_text().count(' --resume') == 1


@pytest.mark.slow
def test_all_processes_of_a_distributed_run_stop_at_the_same_iteration(tmp_path: Path, shapes: Path) -> None:
    torchrun = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')
    work_dir = tmp_path / 'run'
    log = work_dir.with_suffix('.log')

    process = start(work_dir, shapes, launcher=torchrun)
    wait_for('Iter(train) [     2/', work_dir, process)
    process.terminate()
    assert process.wait(60) != 0
    stopped = int(re.search(r'stopped by SIGTERM after iteration (\d+) of', log.read_text())[1])
    saved = Path((work_dir / 'last_checkpoint').read_text())
    assert torch.load(saved, weights_only=False)['meta']['iter'] == stopped
    assert log.read_text().count('stopped by') == 1

    # One of them is killed: the other one does not wait for it, and a resume works.
    process = paste(work_dir)
    wait_for('Saving checkpoint at', work_dir, process)
    ranks = [pid for pid in children(process.pid) if b'train.py' in Path(f'/proc/{pid}/cmdline').read_bytes()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(90) != 0
    assert gone(ranks, 3)
    assert f'resumed epoch: 0, iter: {stopped}' in log.read_text()


@pytest.mark.slow
def test_interruptions_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """A few here; KILL_CYCLES=200 for as many."""
    command = [sys.executable, str(ROOT / 'tests/kill_and_resume.py'), '--out', str(tmp_path / 'out')]
    command += ['--cycles', os.environ.get('KILL_CYCLES', '5')]
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert 'lost nothing' in result.stdout


def poison(runner: Runner) -> None:
    with torch.no_grad():
        runner.model.linear.weight[0, 0] = float('nan')


def test_a_loss_that_is_nan_stops_the_run_and_names_the_iteration_and_the_checkpoint(tmp_path: Path) -> None:
    settings = {'default_hooks.checkpoint.interval': 2}
    with pytest.raises(UserError, match=r'the loss is nan at iteration 6, .+; go on from .+iter_4\.pth with --resume'):
        train(config(tmp_path, **settings), Call('before_train_iter', 5, poison))
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth']


class Scaled(OptimWrapper):
    """A wrapper with a loss scaler, as mmengine's for float16, which asks for a GPU."""

    loss_scaler = 'skips steps whose gradients are not finite'


@pytest.mark.parametrize('overflows', [1, StopWhenDivergedHook.SKIPPED, StopWhenDivergedHook.SKIPPED + 1])
def test_a_loss_scaler_may_skip_steps_but_not_for_ever(tmp_path: Path, overflows: int) -> None:
    OPTIM_WRAPPERS.register_module(module=Scaled, force=True)
    cfg = config(tmp_path, **{'optim_wrapper.type': 'Scaled', 'train_cfg.max_iters': 40})

    def overflow(runner: Runner, *args: Any, **kwargs: Any) -> None:
        if 5 <= runner.iter < 5 + overflows:
            runner.message_hub.update_scalar('train/loss', float('inf'))

    hook = Hook()
    hook.after_train_iter = overflow
    if overflows > StopWhenDivergedHook.SKIPPED:
        with pytest.raises(UserError, match=f'the loss is inf at iteration {5 + overflows}, and is not saved'):
            train(cfg, hook)
    else:
        train(cfg, hook)


def test_weights_that_are_nan_are_not_saved_although_the_loss_was_finite(tmp_path: Path) -> None:
    settings = {'default_hooks.checkpoint.interval': 2}
    message = r'linear\.weight is no longer finite at iteration 6, .+; go on from .+iter_4\.pth'
    with pytest.raises(UserError, match=message):
        train(config(tmp_path, **settings), Call('after_train_iter', 5, poison))
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth']


def test_buffers_may_be_infinite_by_design_but_not_nan() -> None:
    model = nn.BatchNorm1d(2)
    assert first_invalid(model) is None
    model.running_var[0] = float('inf')
    assert first_invalid(model) is None
    model.running_mean[1] = float('nan')
    assert first_invalid(model) == 'running_mean'
    model.weight.data[0] = float('inf')
    assert first_invalid(model) == 'weight'
    assert first_invalid(nn.ReLU()) is None


def test_only_the_first_process_of_a_run_claims_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('RANK', '1')
    with claimed(str(tmp_path / 'run'), 'pytorch'):
        assert not (tmp_path / 'run').exists()
    with claimed(str(tmp_path / 'run'), 'none'):
        owner = (tmp_path / 'run/.lock').read_text()
    assert owner == f'process {os.getpid()} on {socket.gethostname()}\n'


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with (
        pytest.raises(UserError, match=r'file/run cannot be written to: Not a directory; choose'),
        claimed(str(tmp_path / 'file/run')),
    ):
        pass
    (tmp_path / 'ours').mkdir(mode=0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with (
            pytest.raises(UserError, match='Permission denied; choose another --work-dir'),
            claimed(str(tmp_path / 'ours/run')),
        ):
            pass
    finally:
        if root:
            os.seteuid(0)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """/dev/full is where a new checkpoint would be written."""
    from mmengine.fileio.backends import registry_utils

    from cvt_dense.engine.checkpoint_files import write_files_atomically

    before = registry_utils.backends['local'], registry_utils.prefix_to_backends['']
    write_files_atomically()
    try:
        (tmp_path / '.iter_4.pth.part').symlink_to('/dev/full')
        told = (
            rf'^No space left on device; .+ are whole: {tmp_path}/iter_4\.pth; go on from {tmp_path}/iter_2\.pth with'
        )
        with pytest.raises(UserError, match=told):
            train(config(tmp_path, **{'default_hooks.checkpoint.interval': 2}))
    finally:
        registry_utils.backends['local'], registry_utils.prefix_to_backends[''] = before
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_2.pth')
    assert torch.load(tmp_path / 'iter_2.pth', weights_only=False)['meta']['iter'] == 2


def test_a_port_that_is_taken_is_one_line(shapes: Path, tmp_path: Path) -> None:
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        code = 'from cvt_dense.engine import launch\nimport torch\n'
        code += "launch.run(lambda: torch.distributed.init_process_group('gloo'))"
        env = os.environ | dict(RANK='0', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
        result = subprocess.run(
            [sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
        )
    assert result.returncode == 2, result.stderr
    assert 'Traceback' not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(rf'^error: .+port: {port}.+torchrun --standalone', last)


@pytest.mark.slow
@pytest.mark.parametrize('workers', [2])
def test_memory_and_open_files_do_not_grow_over_500_iterations(
    workers: int, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the 150th iteration to the 500th: at most 4 MB and 2 files."""
    monkeypatch.setenv('SHAPES_ROOT', str(shapes))
    cfg = Config.fromfile(UPERNET)
    arch = dict(embed_dims=[8, 16, 32], num_heads=[1, 1, 1], depths=[1, 1, 1])
    cfg.merge_from_dict(
        {
            'model.data_preprocessor.size': (64, 64),
            'model.backbone.arch': arch,
            'model.decode_head.in_channels': [8, 16, 32],
            'model.auxiliary_head.in_channels': 32,
            'model.decode_head.channels': 16,
            'model.auxiliary_head.channels': 16,
            'model.decode_head.norm_cfg.num_groups': 4,
            'model.auxiliary_head.norm_cfg.num_groups': 4,
            'train_cfg.max_iters': 500,
            'train_cfg.val_interval': 50,
            'train_dataloader.batch_size': 2,
            'train_dataloader.num_workers': workers,
            'train_dataloader.persistent_workers': workers > 0,
            'val_dataloader.num_workers': workers,
            'val_dataloader.persistent_workers': workers > 0,
            'default_hooks.checkpoint.interval': 50,
            'experiment_name': f'memory {workers}',
            'work_dir': str(tmp_path),
            'log_level': 'ERROR',
        }
    )
    measured: dict[int, tuple[float, int]] = {}

    trim = ctypes.CDLL(None).malloc_trim

    def measure(runner: Runner) -> None:
        gc.collect()
        trim(0)  # what is free, but not given back to the system, comes and goes
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        files = len(os.listdir('/proc/self/fd'))
        measured[runner.iter] = pages * resource.getpagesize() / 2**20, files

    train(cfg, *(Call('before_train_iter', at, measure) for at in (150, 325, 499)))
    with capsys.disabled():
        print(f'\n{workers} workers: ' + ', '.join(f'{i}: {m:.1f} MB {f} files' for i, (m, f) in measured.items()))
    assert measured[499][0] - measured[150][0] < 4
    assert measured[499][1] - measured[150][1] <= 2
