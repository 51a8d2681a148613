"""What a user types, with two processes: every tool that has a launcher, with every flag, and every way to end."""

from __future__ import annotations

import os
import pickle
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paths import ROOT
from tool_processes import Ranks

from cvt_dense.datasets.shapes_files import make_dataset
from cvt_dense.engine.interruption import INTERRUPTED

pytestmark = pytest.mark.slow

UPERNET = ROOT / 'configs/upernet_cvttiny_shapes.py'
MASK_RCNN = ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'
SMALL = [
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'train_dataloader.batch_size=2',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'default_hooks.logger.interval=1',
    'randomness.seed=0',
]
SEGMENTATION = [
    *SMALL,
    'model.data_preprocessor.size=(64,64)',
    'train_cfg.max_iters=4',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
]
DETECTION = [
    *SMALL,
    'model.train_cfg.rpn_proposal.max_per_img=20',
    'model.test_cfg.rpn.max_per_img=20',
    'model.test_cfg.rcnn.score_thr=0.0',
    'model.test_cfg.rcnn.max_per_img=5',
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
]
ENDLESS = [*SEGMENTATION, 'train_cfg.max_iters=100000', 'train_cfg.val_interval=100000']

Start = Callable[..., Ranks]


@pytest.fixture(scope='module')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    make_dataset(folder, train=8, val=5, size=64)
    return folder


@pytest.fixture
def start(shapes: Path, tmp_path: Path) -> Start:
    """Starts a tool in two processes; what runs at a test's end is killed."""
    started: list[Ranks] = []

    def start_tool(tool: str, *arguments: object, options: list[str], limit: int | None = None) -> Ranks:
        env = os.environ | dict(SHAPES_ROOT=str(shapes), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
        command = [ROOT / 'tools' / tool, *arguments, '--cfg-options', *options]
        started.append(Ranks(command, tmp_path / f'{len(started)}.log', env=env, file_size_limit=limit))
        return started[-1]

    yield start_tool
    for ranks in started:
        ranks.kill()


def assert_ends(ranks: Ranks, *codes: int) -> str:
    """See that the processes end with these codes and no stack trace; returns what they printed."""
    ended = ranks.wait()
    output = ranks.output()
    assert ended == list(codes), output[-5000:]
    assert 'Traceback' not in output, output[-5000:]
    return output


def assert_fails(ranks: Ranks, line: str) -> None:
    """See that the first process to fail says so in this line, and that the others end too."""
    ended = ranks.wait()
    output = ranks.output()
    assert 2 in ended, output[-5000:]
    assert set(ended) <= {2, 128 + signal.SIGTERM}, output[-5000:]
    assert 'Traceback' not in output, output[-5000:]
    assert any(printed.startswith(f'error: {line}') for printed in output.splitlines()), output[-5000:]


def test_segmentation_with_every_flag(start: Start, tmp_path: Path) -> None:
    """Training, evaluation, and training on from what that left, each by the config that the run before has kept."""
    work_dir, flags = tmp_path / 'run', ['--amp', '--ema', '--auto-scale-lr', '--log-to', 'tensorboard']
    options = [*SEGMENTATION, 'auto_scale_lr.base_batch_size=16']
    assert_ends(start('train.py', UPERNET, '--work-dir', work_dir, *flags, options=options), 0, 0)
    kept = work_dir / UPERNET.name
    assert (work_dir / 'curves.png').is_file()
    assert {folder.name for folder in (work_dir / 'samples').iterdir()} == {'iter_2', 'iter_4'}
    assert len(list((work_dir / 'samples/iter_4').glob('*.png'))) >= 2
    assert list(work_dir.glob('*/vis_data/events*'))
    checkpoint = work_dir / 'iter_4.pth'
    assert 'ema_state_dict' in torch.load(checkpoint, weights_only=False)

    maps, pictures = tmp_path / 'maps', tmp_path / 'pictures'
    arguments = [kept, checkpoint, '--work-dir', tmp_path / 'test', '--out', maps, '--show-dir', pictures]
    output = assert_ends(start('test.py', *arguments, options=SMALL), 0, 0)
    assert len(re.findall(r'mIoU: [\d.]+', output)) == 1, 'only the first process reports'
    assert len(list(maps.glob('*.png'))) == 5
    assert len(list(pictures.glob('*.png'))) == 5

    more = ['train_cfg.max_iters=6']
    output = assert_ends(start('train.py', kept, '--work-dir', work_dir, *flags, '--resume', options=more), 0, 0)
    assert 'resumed epoch: 0, iter: 4' in output
    content = torch.load(work_dir / 'iter_6.pth', weights_only=False)
    assert content['meta']['iter'] == 6
    assert content['meta']['cfg'].count('EMAHook') == 1
    assert 'interrupted' not in output


def test_detection_with_files_and_pictures(start: Start, tmp_path: Path) -> None:
    work_dir = tmp_path / 'run'
    assert_ends(start('train.py', MASK_RCNN, '--work-dir', work_dir, '--amp', options=DETECTION), 0, 0)
    checkpoint, out, pictures = work_dir / 'epoch_1.pth', tmp_path / 'a.pkl', tmp_path / 'pictures'
    arguments = [MASK_RCNN, checkpoint, '--work-dir', tmp_path / 'test', '--out', out, '--show-dir', pictures]
    output = assert_ends(start('test.py', *arguments, options=DETECTION), 0, 0)
    assert 'coco/bbox_mAP: ' in output
    with open(out, 'rb') as file:
        assert len(pickle.load(file)) == 5
    assert len(list(pictures.glob('*.png'))) == 5


def test_checkpoints_that_fit_and_do_not(start: Start, tmp_path: Path) -> None:
    trained = tmp_path / 'trained'
    assert_ends(start('train.py', UPERNET, '--work-dir', trained, options=SEGMENTATION), 0, 0)
    content = torch.load(trained / 'iter_4.pth', weights_only=False)
    lacking = {name: t for name, t in content['state_dict'].items() if 'backbone.stage2' not in name}
    torch.save(content | dict(state_dict=lacking), tmp_path / 'lacking.pth')
    torch.save({f'module.{name}': tensor for name, tensor in content['state_dict'].items()}, tmp_path / 'wrapped.pth')

    new = [
        *SEGMENTATION,
        f'load_from={tmp_path}/wrapped.pth',
        'train_cfg.val_interval=100',
        'model.backbone.init_cfg=None',
    ]
    output = assert_ends(start('train.py', UPERNET, '--work-dir', tmp_path / 'new', options=new), 0, 0)
    assert f'Load checkpoint from {tmp_path}/wrapped.pth' in output

    bad = [*SEGMENTATION, f'load_from={tmp_path}/lacking.pth']
    runs = [
        start('train.py', UPERNET, '--work-dir', tmp_path / 'bad', options=bad),
        start('train.py', UPERNET, '--work-dir', trained, '--resume', tmp_path / 'lacking.pth', options=SEGMENTATION),
        start('test.py', UPERNET, tmp_path / 'lacking.pth', '--work-dir', tmp_path / 'test', options=SEGMENTATION),
    ]
    for ranks in runs:
        assert_fails(ranks, f'checkpoint {tmp_path}/lacking.pth does not fit this config: it lacks backbone.stage2')
    assert not list((tmp_path / 'bad').glob('*.pth'))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('ranks_told', [[0, 1], [1]])
def test_a_signal_to_all_or_one_stops_all_and_a_resume_goes_on(
    start: Start, tmp_path: Path, number: signal.Signals, ranks_told: list[int]
) -> None:
    work_dir = tmp_path / 'run'
    options = [*ENDLESS, 'default_hooks.checkpoint.interval=1000']
    ranks = start('train.py', UPERNET, '--work-dir', work_dir, '--ema', options=options)
    ranks.wait_for('Iter(train) [     2/')
    for rank in ranks_told:
        ranks.processes[rank].send_signal(number)
    output = assert_ends(ranks, *[128 + number] * 2)
    stopped = int(re.search(rf'stopped by {number.name} after iteration (\d+) of 100000; go on from', output)[1])
    assert torch.load(work_dir / INTERRUPTED, weights_only=False)['meta']['iter'] == stopped
    last = [*SEGMENTATION, f'train_cfg.max_iters={stopped + 1}', 'train_cfg.val_interval=100000']
    output = assert_ends(start('train.py', UPERNET, '--work-dir', work_dir, '--ema', '--resume', options=last), 0, 0)
    assert f'resumed epoch: 0, iter: {stopped}' in output


@pytest.mark.parametrize('killed', [0, 1])
def test_one_process_is_killed_and_a_resume_goes_on(start: Start, tmp_path: Path, killed: int) -> None:
    work_dir = tmp_path / 'run'
    ranks = start('train.py', UPERNET, '--work-dir', work_dir, options=ENDLESS)
    ranks.wait_for('Saving checkpoint at 2 iterations')
    ranks.wait_for('Iter(train) [     3/')
    ranks.processes[killed].kill()
    codes = ranks.wait()
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] in (2, 128 + signal.SIGTERM)  # it finds out, or is told
    assert 'Traceback' not in ranks.output()
    last = [*SEGMENTATION, 'train_cfg.val_interval=100000', 'train_cfg.max_iters=100']
    ranks = start('train.py', UPERNET, '--work-dir', work_dir, '--resume', options=last)
    ranks.wait_for('resumed epoch: 0, iter: ')
    ranks.send_signal(signal.SIGTERM)
    assert ranks.wait()[0] in (0, 128 + signal.SIGTERM)


def test_a_full_disk_ends_all_and_keeps_what_was_saved(start: Start, tmp_path: Path) -> None:
    work_dir = tmp_path / 'run'
    assert_ends(start('train.py', UPERNET, '--work-dir', work_dir, options=SEGMENTATION), 0, 0)
    before = (work_dir / 'iter_4.pth').read_bytes()
    ranks = start(
        'train.py',
        UPERNET,
        '--work-dir',
        work_dir,
        '--resume',
        options=[*SEGMENTATION, 'train_cfg.max_iters=8'],
        limit=2**20,
    )
    assert_fails(ranks, 'File too large; checkpoints that were saved before are whole')
    assert (work_dir / 'iter_4.pth').read_bytes() == before


def test_a_failure_in_one_process_ends_both(start: Start, tmp_path: Path) -> None:
    """Within a step, while gradients are on their way: the other process is not waited for."""
    failing = tmp_path / 'failing.py'
    failing.write_text(
        f"_base_ = '{UPERNET}'\nimport sys\nsys.path.insert(0, '{tmp_path}')\ndel sys\n"
        "custom_imports = dict(imports=['cvt_dense', 'fails_on_one'], allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='FailsOnOne')]\n"
    )
    (tmp_path / 'fails_on_one.py').write_text(
        'from mmengine.dist import get_rank\n'
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n'
        '\n\n'
        '@HOOKS.register_module()\n'
        'class FailsOnOne(Hook):\n'
        '    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):\n'
        '        if get_rank() == 1 and runner.iter == 1:\n'
        "            raise RuntimeError('on one alone')\n"
    )
    ranks = start('train.py', failing, '--work-dir', tmp_path / 'run', options=SEGMENTATION)
    assert_fails(ranks, 'training fails at iteration 2: RuntimeError: on one alone; the stack trace is in ')
