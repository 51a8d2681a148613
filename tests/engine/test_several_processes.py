"""Several processes on CPUs, as torchrun starts them."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES as FAMILIES_OF_BACKBONES
from families import Family, each_family
from golden import TINY
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from paths import ROOT
from small_runs import SMALL_DETECTION
from tool_processes import run_tool
from toolkit_configs import FAMILIES, build, folder, in_scope, training_batch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from cvt_dense import CvT
from cvt_dense.backbones.fsdp import wrap_backbone_blocks
from cvt_dense.datasets.shapes_files import make_dataset

# One batch of four images a step, or two of two; nothing random, no norm that sees the batch, and plain SGD, so that
# gradients can be read off the weights.
TWICE_THE_SAME = [
    'train_dataloader.sampler.shuffle=False',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'train_dataloader.dataset.pipeline.2.prob=0.0',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1',
    'model.backbone.drop_path_rate=0',
    'model.backbone.norm_eval=True',
    'model.decode_head.dropout_ratio=0',
    'model.auxiliary_head.dropout_ratio=0',
    'optim_wrapper.optimizer._delete_=True',
    'optim_wrapper.optimizer.type=SGD',
    'optim_wrapper.optimizer.lr=0.1',
    'optim_wrapper.optimizer.weight_decay=0.0',
    'param_scheduler=None',
    'randomness.seed=0',
]


def environment(**more: str) -> dict[str, str]:
    return os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', **more)


def train(
    processes: int,
    work_dir: Path,
    options: list[str],
    env: dict[str, str],
    config: Path = ROOT / 'configs/upernet_cvttiny_shapes.py',
    *more: str,
) -> str:
    """Run tools/train.py in one or several processes; returns what they print."""
    arguments = [ROOT / 'tools/train.py', config, '--work-dir', work_dir, *more]
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    if processes == 1:
        result = run_tool([*arguments, '--cfg-options', *options], env=environment(**env))
    else:
        command = [sys.executable, *launcher, *arguments, '--launcher', 'pytorch', '--cfg-options', *options]
        result = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-5000:]
    return output


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    make_dataset(tmp_path / 'shapes', train=8, val=5)
    env = dict(SHAPES_ROOT=str(tmp_path / 'shapes'))
    weights, scores = [], []
    for processes, batch in ((1, 4), (2, 2)):
        work_dir = tmp_path / f'{processes} processes'
        output = train(processes, work_dir, [*TWICE_THE_SAME, f'train_dataloader.batch_size={batch}'], env)
        assert ('2 processes on CPUs, by gloo' in output) == (processes == 2)
        weights.append(torch.load(work_dir / 'iter_2.pth', weights_only=False)['state_dict'])
        scores.append(re.findall(r'(?:aAcc|mIoU|mAcc): ([\d.]+)', output)[-3:])
    assert len(scores[0]) == 3
    assert scores[0] == scores[1]
    start = CvT(arch=dict(embed_dims=[32, 64, 128], num_heads=[1, 2, 4], depths=[1, 1, 2])).state_dict()
    assert any(not torch.equal(weights[0][f'backbone.{name}'], tensor) for name, tensor in start.items())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f'{n}: {m}')


FSDP = """
_base_ = '{base}'
backbone = dict(_delete_=True, type='{family.name}', arch={family.tiny}, drop_path_rate=0.1, out_indices=(0, 1, 2))
model = dict(backbone=backbone)
"""


@pytest.mark.slow
@each_family
def test_parameters_are_split_among_processes(family: Family, data: Path, tmp_path: Path) -> None:
    """Without checkpoints: PyTorch gathers FSDP's on GPUs only."""
    config = tmp_path / 'fsdp.py'
    base = ROOT / 'configs/maskrcnn_cvtw24_fpn_coco_fsdp.py'
    config.write_text(FSDP.format(base=base, family=family))
    options = [*SMALL_DETECTION, 'model.backbone.init_cfg=None', 'train_cfg.max_epochs=2', 'val_cfg=None']
    options += ['val_dataloader=None', 'val_evaluator=None', 'default_hooks.checkpoint=None']
    output = train(2, tmp_path / 'run', options, dict(COCO_ROOT=str(data / 'coco_mini')), config)
    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', output)]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


@each_family
def test_each_block_is_wrapped_by_itself(family: Family) -> None:
    backbone = family.build()
    wrapped = [name for name, module in backbone.named_modules() if wrap_backbone_blocks(module, False, 0)]
    depths = family.tiny['depths']
    blocks = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    assert [backbone.place_of(name) for name in wrapped] == blocks
    assert wrap_backbone_blocks(nn.Linear(1, 1), True, 0)


#: What could leave a parameter without a gradient, or have it differ between processes. ``read``: the maps that are.
#: ``mixed``: images of several sizes, and of others in the other process.
SETTINGS: list[dict[str, Any]] = [
    dict(),
    dict(frozen_stages=0),
    dict(frozen_stages=2),
    dict(with_cp=True),
    dict(with_cp=True, frozen_stages=1, window_size=3),
    dict(out_indices=(2,)),
    dict(out_indices=(2,), out_norm=False, with_cp=True),
    dict(out_indices=(0, 1)),
    dict(norm_eval=False, drop_path_rate=0.3),
    dict(mixed=True),
    dict(mixed=True, norm_eval=False, drop_path_rate=0.3, with_cp=True, window_size=3),
    dict(read=(1, 2)),
    dict(read=(0,), out_indices=(0, 1, 2, 3)),
    dict(read=(3,), out_indices=(0, 1, 2, 3), with_cp=True, norm_eval=False),
    dict(read=(0,), out_indices=(0, 1, 2, 3), frozen_stages=1, out_norm=False),
    dict(arch=TINY | dict(stem_channels=6, position='conv'), mixed=True, norm_eval=False),
    dict(arch=TINY | dict(stem_channels=6, position='conv'), frozen_stages=0, with_cp=True),
    dict(arch=TINY | dict(pretrain_size=64), window_size='fast', mixed=True, with_cp=True),
    dict(arch=TINY | dict(projection='linear', patch_embed='patch', position='learned', pretrain_size=64), mixed=True),
]


#: Of these, what CMT's stem, shared position bias and blocks that change maps could be wrong about.
SETTINGS_OF = dict(
    cvt=SETTINGS,
    cmt=[
        dict(),
        dict(frozen_stages=1, with_cp=True, window_size=3),
        dict(out_indices=(2,), out_norm=False, with_cp=True),
        dict(mixed=True, norm_eval=False, drop_path_rate=0.3),
        dict(read=(4,), out_indices=(0, 1, 2, 3, 4), norm_eval=False),
    ],
)


def _steps(rank: int, store: str, name: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    family = FAMILIES_OF_BACKBONES[name]
    side = 2 * family.min_size
    for settings in SETTINGS_OF[name]:
        torch.manual_seed(0)
        settings = dict(settings)
        read, mixed = settings.pop('read', range(4)), settings.pop('mixed', False)
        sizes = [(side, side - 11 + 9 * rank), (side - 14 + rank, side)] if mixed else None
        backbone = family.build(**settings).train()
        model = DistributedDataParallel(backbone, find_unused_parameters=False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for step in range(3):  # an unused parameter shows in the second
            torch.manual_seed(10 * rank + step)
            maps = model(torch.randn(2, 3, side, side), image_sizes=sizes)
            loss = sum(x.square().mean() for i, x in enumerate(maps) if i in read)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for name, p in model.named_parameters():
            others = [torch.empty_like(p) for _ in range(2)]
            distributed.all_gather(others, p.detach())
            assert torch.equal(*others), f'{settings}: {name} differs between the processes'
            assert p.isfinite().all(), f'{settings}: {name}'
        del model, optimizer, loss  # what refers to the group goes before the group
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES_OF_BACKBONES)
def test_no_parameter_is_unused(family: str, tmp_path: Path) -> None:
    multiprocessing.spawn(_steps, (str(tmp_path / 'store'), family), nprocs=2)


#: Heads of the toolkits that leave out some of the backbone's maps, or one of which reads one map alone.
TOOLKIT_FAMILIES = ('RetinaNet', 'FCOS', 'Deformable DETR', 'RTMDet', 'PSPNet', 'SegFormer')


def _families(rank: int, files: str) -> None:
    torch.set_num_threads(1)
    for toolkit in ('mmdet', 'mmseg'):
        import_module(f'{toolkit}.utils').register_all_modules(init_default_scope=False)
    distributed.init_process_group('gloo', init_method=f'file://{files}/store', rank=rank, world_size=2)
    for family in FAMILIES:
        if family.name not in TOOLKIT_FAMILIES:
            continue
        torch.manual_seed(0)
        model = MMDistributedDataParallel(build(family), find_unused_parameters=False)
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4))
        for step in range(2):  # an unused parameter shows in the second
            torch.manual_seed(10 * rank + step)
            with in_scope(family):
                losses = model.train().train_step(training_batch(family), optimizer)
            assert losses['loss'].isfinite(), f'{family}: {losses}'
        for name, p in model.module.backbone.named_parameters():
            others = [torch.empty_like(p) for _ in range(2)]
            distributed.all_gather(others, p.detach())
            assert torch.equal(*others), f'{family}: {name} differs between the processes'
        # A file each: lines that two processes print at the same time can mix.
        with open(f'{files}/trained{rank}.txt', 'a', encoding='utf-8') as names:
            names.write(f'{family.name}\n')
        del model, optimizer, losses
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_heads_of_the_toolkits_train_in_two_processes(tmp_path: Path) -> None:
    if any(folder(toolkit) is None for toolkit in ('mmdet', 'mmseg')):
        pytest.skip('a toolkit is installed without its configs')
    multiprocessing.spawn(_families, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        trained = (tmp_path / f'trained{rank}.txt').read_text(encoding='utf-8').splitlines()
        assert sorted(trained) == sorted(TOOLKIT_FAMILIES), f'process {rank}'


def test_frozen_batchnorm_is_converted_to_syncbn_and_stays_frozen() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(CvT(TINY))
    norms = [m for m in model.train().modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 15
    assert not any(norm.training for norm in norms)
    x = torch.randn(1, 3, 32, 32)
    plain = CvT(TINY)
    plain.load_state_dict(model.state_dict())
    for ours, theirs in zip(model.eval()(x), plain.eval()(x)):
        torch.testing.assert_close(ours, theirs)
