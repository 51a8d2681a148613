"""The tools as a user runs them: in a process of their own, on real images."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from golden import weights
from paths import ROOT
from PIL import Image
from small_runs import MASK_RCNN, SMALL_DETECTION, SMALL_SEGMENTATION, UPERNET, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tool_processes import ToolProcess

from cvt_dense import CvT, CvTTrunk
from cvt_dense.visualization.curves import read_history


def assert_one_line_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    assert 'Traceback' not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    for part in parts:
        assert part in last


def assert_comes_soon(text: str, output: str) -> None:
    """The first step of a run is on the first screen, after what the run is."""
    before = output.partition(text)[0].splitlines()
    assert len(before) < 26, output[:5000]
    assert any(line.startswith('    classes ') for line in before)


def kill_after_first_checkpoint(work_dir: Path, checkpoint: str, arguments: list[str], env: dict[str, str]) -> None:
    """Start training and kill it, as a machine would die, once the checkpoint is written."""
    log = work_dir.with_suffix('.log')
    process = ToolProcess([ROOT / 'tools/train.py', *arguments], log, env=os.environ | env)
    deadline = time.monotonic() + 300
    while not (work_dir / 'last_checkpoint').exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, log.read_text()[-3000:]
    assert (work_dir / checkpoint).exists()


def assert_watched(work_dir: Path, step: str, names: list[str], iterations: int) -> None:
    """A run that was resumed left curves of all iterations, pictures of these images, and both in TensorBoard."""
    steps = [entry['iter'] for entry in read_history(work_dir) if 'loss' in entry]
    assert steps == list(range(1, iterations + 1))
    assert read_history(work_dir)[-1]['iter'] == iterations, 'that of the last evaluation'
    with Image.open(work_dir / 'curves.png') as curves:
        assert curves.width > 1000
    assert sorted(path.stem for path in (work_dir / 'samples' / step).iterdir()) == names
    (folder,) = {path.parent for path in work_dir.glob('*/vis_data/events.*')}  # of the resumed run, too
    events = EventAccumulator(str(folder)).Reload()
    assert [found.step for found in events.Scalars('loss')] == steps
    assert {f'samples/{name}' for name in names} == set(events.Tags()['images'])
    (metric,) = {'coco/bbox_mAP', 'mIoU'} & set(events.Tags()['scalars'])
    shown = [events.Scalars('loss'), events.Scalars(metric), *(events.Images(f'samples/{name}') for name in names)]
    assert {found[-1].step for found in shown} == {iterations}


@pytest.fixture(scope='module')
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the authors' format with weights of cvt-13."""
    path = tmp_path_factory.mktemp('official') / 'CvT-13.pth'
    trunk = CvTTrunk('cvt-13')
    heads = {'norm.weight': torch.ones(384), 'head.weight': torch.zeros(1000, 384), 'head.bias': torch.zeros(1000)}
    torch.save(weights(trunk) | heads, path)
    return path


def test_missing_things_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    nowhere = {'COCO_ROOT': str(tmp_path / 'no coco')}
    assert_one_line_error(run('train.py', 'configs/nope.py'), 'config configs/nope.py does not exist')
    assert_one_line_error(run('train.py', MASK_RCNN, env=nowhere), 'no coco does not exist', 'COCO_ROOT=DIR')
    assert_one_line_error(run('test.py', MASK_RCNN, 'nope.pth'), 'checkpoint nope.pth does not exist')


def test_a_missing_annotation_file_is_named(tmp_path: Path) -> None:
    (tmp_path / 'train2017').mkdir()
    result = run('train.py', MASK_RCNN, env={'COCO_ROOT': str(tmp_path)})
    assert_one_line_error(result, f'annotation file {tmp_path}/annotations/instances_train2017.json does not exist')


@pytest.mark.slow
def test_weights_of_another_variant_stop_the_run(data: Path, official: Path, tmp_path: Path) -> None:
    arguments = ('--work-dir', tmp_path, '--cfg-options', f'model.backbone.init_cfg.checkpoint={official}')
    env = {'COCO_ROOT': str(data / 'coco_mini')}
    result = run('train.py', 'configs/maskrcnn_cvt21_fpn_coco.py', *arguments, env=env)
    assert_one_line_error(
        result, "these are cvt-13's; the config asks for cvt-21", 'missing (stage1.blocks.2.norm1.weight'
    )


@pytest.mark.slow
def test_a_mistake_in_the_init_cfg_stops_the_run(data: Path, tmp_path: Path) -> None:
    arguments = ('--work-dir', tmp_path, '--cfg-options', 'model.backbone.init_cfg.chekpoint=a.pth')
    result = run('train.py', MASK_RCNN, *arguments, env={'COCO_ROOT': str(data / 'coco_mini')})
    assert_one_line_error(result, "init_cfg has an unknown key 'chekpoint'")


@pytest.mark.slow
def test_without_network_both_ways_out_are_named(data: Path, tmp_path: Path) -> None:
    env = {'COCO_ROOT': str(data / 'coco_mini'), 'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'empty')}
    result = run('train.py', MASK_RCNN, '--work-dir', tmp_path / 'run', env=env)
    assert_one_line_error(
        result,
        'CvT-13-384x384-IN-22k.pth: --cfg-options model.backbone.init_cfg.checkpoint=PATH',
        'model.backbone.init_cfg=None',
    )


@pytest.mark.slow
def test_a_detector_trains_is_killed_resumes_and_is_tested(data: Path, official: Path, tmp_path: Path) -> None:
    env = {'COCO_ROOT': str(data / 'coco_mini')}
    work_dir = tmp_path / 'run'
    options = [*SMALL_DETECTION, f'model.backbone.init_cfg.checkpoint={official}', 'train_cfg.max_epochs=2']
    options += ['default_hooks.samples.interval=1']
    arguments = [MASK_RCNN, '--work-dir', str(work_dir), '--log-to', 'tensorboard', '--cfg-options', *options]
    kill_after_first_checkpoint(work_dir, 'epoch_1.pth', arguments, env)
    assert_comes_soon('Epoch(train)', work_dir.with_suffix('.log').read_text())
    assert 'loaded 455 tensors of the trunk' in work_dir.with_suffix('.log').read_text()

    # Resuming needs the pre-trained weights no more.
    gone = [f'model.backbone.init_cfg.checkpoint={tmp_path / "gone.pth"}']
    resumed = run('train.py', *arguments, *gone, '--resume', env=env)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    output = resumed.stdout + resumed.stderr
    assert 'resumed epoch: 1, iter: 2' in output
    assert 'Epoch(train) [2][2/2]' in output
    assert 'Epoch(train) [1]' not in output
    assert 'coco/segm_mAP' in output
    images = json.loads((data / 'coco_mini/annotations/instances_val2017.json').read_text())['images'][:2]
    names = sorted(Path(image['file_name']).stem for image in images)
    assert_watched(work_dir, 'epoch_2', names, iterations=4)
    # AP of each class, of boxes and of masks; a validation that the kill cut off is done first.
    assert len(re.findall(r'^\| person +\|', output, re.MULTILINE)) in (2, 4)

    predictions, pictures = tmp_path / 'predictions.pkl', tmp_path / 'pictures'
    arguments = [MASK_RCNN, work_dir / 'epoch_2.pth', '--out', predictions, '--show-dir', pictures]
    tested = run('test.py', *arguments, '--work-dir', tmp_path / 'test', '--cfg-options', *SMALL_DETECTION, env=env)
    assert tested.returncode == 0, tested.stderr[-3000:]
    assert 'coco/segm_mAP' in tested.stdout + tested.stderr
    assert_comes_soon('Epoch(test)', tested.stdout + tested.stderr)
    with open(predictions, 'rb') as file:
        assert len(pickle.load(file)) == 2
    assert sorted(path.stem for path in pictures.glob('*.png')) == names


@pytest.mark.slow
def test_a_segmentor_trains_is_killed_resumes_and_is_tested(data: Path, official: Path, tmp_path: Path) -> None:
    env = {'ADE20K_ROOT': str(data / 'ade_mini')}
    work_dir = tmp_path / 'run'
    options = [*SMALL_SEGMENTATION, f'model.backbone.init_cfg.checkpoint={official}', 'train_cfg.max_iters=3']
    options += ['train_cfg.val_interval=3']
    arguments = [UPERNET, '--work-dir', str(work_dir), '--log-to', 'tensorboard', '--cfg-options', *options]
    kill_after_first_checkpoint(work_dir, 'iter_1.pth', arguments, env)
    assert_comes_soon('Iter(train)', work_dir.with_suffix('.log').read_text())

    resumed = run('train.py', *arguments, '--resume', env=env)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    output = resumed.stdout + resumed.stderr
    assert re.search(r'resumed epoch: 0, iter: [12]\b', output)
    assert 'Iter(train) [3/3]' in output
    assert 'Iter(train) [1/3]' not in output
    assert 'mIoU' in output
    names = sorted(path.stem for path in (data / 'ade_mini/images/validation').iterdir())[:2]
    assert_watched(work_dir, 'iter_3', names, iterations=3)
    assert re.search(r'^\| +building +\|', output, re.MULTILINE), 'IoU of each class'

    maps, pictures = tmp_path / 'maps', tmp_path / 'pictures'
    arguments = [UPERNET, work_dir / 'iter_3.pth', '--out', maps, '--show-dir', pictures]
    tested = run('test.py', *arguments, '--work-dir', tmp_path / 'test', '--cfg-options', *SMALL_SEGMENTATION, env=env)
    assert tested.returncode == 0, tested.stderr[-3000:]
    assert 'mIoU' in tested.stdout + tested.stderr
    assert_comes_soon('Iter(test)', tested.stdout + tested.stderr)
    assert sorted(path.stem for path in maps.glob('*.png')) == names
    for name in names:
        with (
            Image.open(data / f'ade_mini/annotations/validation/{name}.png') as truth,
            Image.open(maps / f'{name}.png') as ours,
        ):
            assert ours.size == truth.size
    assert sorted(path.stem for path in pictures.glob('*.png')) == names

    backbone = tmp_path / 'backbone.safetensors'
    extracted = run('convert_checkpoint.py', work_dir / 'iter_3.pth', backbone, '--half')
    assert extracted.returncode == 0, extracted.stderr
    model = CvT('cvt-13', init_cfg=dict(type='Pretrained', checkpoint=str(backbone)))
    model.init_weights()
    trained = torch.load(work_dir / 'iter_3.pth', weights_only=False)['state_dict']
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, trained[f'backbone.{name}'], rtol=1e-3, atol=1e-6)
    refused = run('convert_checkpoint.py', work_dir / 'iter_3.pth', backbone)
    assert_one_line_error(refused, 'backbone.safetensors exists; overwrite it with --force')


@pytest.mark.slow
def test_the_learning_rate_scales_with_the_batch(data: Path, tmp_path: Path) -> None:
    options = [*SMALL_SEGMENTATION, 'model.backbone.init_cfg=None', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    arguments = (UPERNET, '--work-dir', tmp_path, '--auto-scale-lr', '--cfg-options', *options)
    result = run('train.py', *arguments, env={'ADE20K_ROOT': str(data / 'ade_mini')})
    assert result.returncode == 0, result.stderr[-3000:]
    output = result.stdout + result.stderr
    assert 'Scaling the original LR by 0.125' in output
    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', output)]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.gpu
def test_a_detector_trains_in_mixed_precision(data: Path, tmp_path: Path) -> None:
    options = [*SMALL_DETECTION, 'model.backbone.init_cfg=None', 'train_cfg.max_epochs=1']
    arguments = (MASK_RCNN, '--work-dir', tmp_path, '--amp', '--cfg-options', *options)
    result = run('train.py', *arguments, env={'COCO_ROOT': str(data / 'coco_mini')})
    assert result.returncode == 0, result.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', result.stdout + result.stderr)]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.slow
def test_the_demo_ends_with_pictures_and_an_ap(tmp_path: Path) -> None:
    out = tmp_path / 'demo with a space'
    result = run('demo.py', '--out', out, '--train', 16, '--val', 4, '--epochs', 1, '--pictures', 2)
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'mask AP (0.50:0.95) on 4 held-out images' in result.stdout
    with Image.open(out / 'predictions.png') as grid, Image.open(out / 'curves.png') as curves:
        assert grid.size == (4 * 496, 496)
        assert curves.width > 1000
    assert len(list((out / 'predictions/pictures').glob('*.jpg'))) == 2


DIES_WHILE_WRITING = """
import os, runpy, signal, sys
number, synced = int(sys.argv.pop(1)), os.fsync
written = []
def die_before_the_rename(descriptor):
    written.append(descriptor)
    if len(written) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    synced(descriptor)
os.fsync = die_before_the_rename
sys.argv[0] = 'tools/train.py'
runpy.run_path('tools/train.py', run_name='__main__')
"""


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_with_the_weights_of_one_that_is_not(tmp_path: Path) -> None:
    """Once at an iteration within an epoch, and once while a checkpoint is being written."""
    made = run('make_shapes.py', '--out', tmp_path / 'shapes', '--train', 16, '--val', 2)
    assert made.returncode == 0, made.stderr
    env = {'SHAPES_ROOT': str(tmp_path / 'shapes'), 'OMP_NUM_THREADS': '1'}
    options = [
        'randomness.seed=5',
        'train_dataloader.batch_size=4',
        'train_cfg.max_epochs=3',
        'train_cfg.val_interval=3',
    ]
    options += [
        'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.interval=1',
        'param_scheduler.1.end=3',
    ]
    options += ['default_hooks.checkpoint.save_best=None', 'model.backbone.drop_path_rate=0.3']
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'

    def arguments(work_dir: Path) -> list[str]:
        return ['configs/maskrcnn_cvttiny_fpn_shapes.py', '--work-dir', str(work_dir), '--cfg-options', *options]

    expected = run('train.py', *arguments(whole), env=env)
    assert expected.returncode == 0, expected.stderr[-3000:]

    kill_after_first_checkpoint(cut, 'iter_1.pth', arguments(cut), env)
    command_line = [sys.executable, '-c', DIES_WHILE_WRITING, '5', *arguments(cut), '--resume']
    with open(tmp_path / 'died.log', 'w') as log:  # a pipe would stay open until its workers have gone too
        died = subprocess.run(
            command_line, cwd=ROOT, env=os.environ | env, stdout=log, stderr=log, timeout=600, check=False
        )
    assert died.returncode == -signal.SIGKILL, (tmp_path / 'died.log').read_text()[-3000:]
    assert list(cut.glob('.iter_*.pth.part'))
    resumed = run('train.py', *arguments(cut), '--resume', env=env)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    first = int(re.search(r'resumed epoch: \d+, iter: (\d+)', resumed.stdout + resumed.stderr)[1])
    assert 4 < first < 12
    assert first % 4, 'this one was to die within an epoch'

    weights = [torch.load(folder / 'iter_12.pth', weights_only=False)['state_dict'] for folder in (whole, cut)]
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['detection', 'segmentation'])
def test_precision_accumulation_clipping_and_averaging_work_together(kind: str, data: Path, tmp_path: Path) -> None:
    options = [
        'model.backbone.init_cfg=None',
        'optim_wrapper.accumulative_counts=2',
    ]
    options += ['optim_wrapper.clip_grad.max_norm=1.0', 'model.backbone.window_size=[8,8,None]']
    if kind == 'detection':
        options += [*SMALL_DETECTION, 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
        env, config, checkpoint = {'COCO_ROOT': str(data / 'coco_mini')}, MASK_RCNN, 'epoch_2.pth'
    else:
        options += [*SMALL_SEGMENTATION, 'train_cfg.max_iters=4', 'train_cfg.val_interval=4']
        env, config, checkpoint = {'ADE20K_ROOT': str(data / 'ade_mini')}, UPERNET, 'iter_4.pth'
    result = run(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        '--amp',
        '--ema',
        '--auto-scale-lr',
        '--cfg-options',
        *options,
        env=env,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    output = result.stdout + result.stderr
    assert 'Scaling the original LR by 0.125' in output
    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', output)]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert re.findall(r'grad_norm: ([\d.]+)', output)
    saved = torch.load(tmp_path / checkpoint, weights_only=False)
    assert saved['ema_state_dict'].keys() >= {'steps'}
    assert {tensor.dtype for tensor in saved['state_dict'].values()} <= {torch.float32, torch.int64}


@pytest.mark.slow
def test_layer_wise_decay_is_one_line(data: Path, tmp_path: Path) -> None:
    options = [*SMALL_SEGMENTATION, 'model.backbone.init_cfg=None', 'train_cfg.max_iters=1', 'train_cfg.val_interval=1']
    options += ['optim_wrapper.constructor=LayerDecayOptimWrapperConstructor']
    options += ['optim_wrapper.paramwise_cfg.layer_decay_rate=0.8']
    arguments = (UPERNET, '--work-dir', tmp_path, '--cfg-options', *options)
    result = run('train.py', *arguments, env={'ADE20K_ROOT': str(data / 'ade_mini')})
    assert result.returncode == 0, result.stderr[-3000:]
    (log,) = tmp_path.glob('*/*.log')
    assert 'Parameter groups:' in log.read_text()
    wrong = run(
        'train.py', *arguments, 'optim_wrapper.paramwise_cfg.decay=1', env={'ADE20K_ROOT': str(data / 'ade_mini')}
    )
    assert_one_line_error(wrong, "paramwise_cfg has an unknown key 'decay'")
