from __future__ import annotations

import os

import pytest
import torch
from mmengine.config import Config

from cvt_dense.engine import devices
from cvt_dense.errors import UserError

pytestmark = pytest.mark.usefixtures('launch_environment')


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_a_distributed_run_that_could_not_start_is_refused(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config(dict(launcher=launcher))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    devices.prepare_launcher(cfg)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match=f'--launcher {launcher} needs GPUs.*use torchrun'):
        devices.prepare_launcher(cfg)
    devices.prepare_launcher(Config(dict(launcher='none')))


def test_fsdp_without_a_gpu_is_refused_before_a_checkpoint_would_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setenv('RANK', '0')
    cfg = Config(dict(launcher='pytorch', strategy=dict(type='FSDPStrategy'), default_hooks=dict()))
    with pytest.raises(UserError, match='FSDP saves checkpoints on GPUs only'):
        devices.prepare_launcher(cfg)
    with pytest.raises(UserError, match='FSDPStrategy needs several processes'):
        devices.prepare_launcher(Config(dict(launcher='none', strategy=dict(type='FSDPStrategy'))))


def test_without_torchrun_its_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UserError, match='torchrun --nproc_per_node=N'):
        devices.prepare_launcher(Config(dict(launcher='pytorch')))


@pytest.mark.parametrize(
    ('scope', 'operators', 'hidden'),
    [('mmdet', 'not available', True), ('mmdet', '12.8', False), ('mmseg', 'not available', False)],
)
def test_a_detector_without_operators_for_the_gpu_stays_off_it(
    scope: str, operators: str, hidden: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: operators)
    monkeypatch.setattr('shutil.which', lambda name: f'/usr/bin/{name}')
    devices.hide_gpu_without_operators(Config(dict(default_scope=scope)))
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ('' if hidden else '0')
    assert ('the GPU is not used: mmcv was built without CUDA' in capsys.readouterr().err) is hidden


def sync_bn_model() -> Config:
    sync = dict(type='SyncBN', requires_grad=True)
    return Config(
        dict(
            model=dict(
                type='X',
                backbone=dict(type='Y', norm_cfg=sync),
                neck=[dict(norm_cfg=sync), dict(norm_cfg=dict(type='GN'))],
                head=dict(heads=(dict(norm_cfg=sync),)),
            )
        )
    )


def test_without_a_gpu_every_sync_bn_becomes_a_bn_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = sync_bn_model()
    devices.use_batchnorm_without_gpu(cfg)
    assert cfg.model.backbone.norm_cfg == dict(type='BN', requires_grad=True)
    assert [neck.norm_cfg.type for neck in cfg.model.neck] == ['BN', 'GN']
    assert cfg.model.head.heads[0].norm_cfg.type == 'BN'
    assert 'no GPU: 3 SyncBN settings' in capsys.readouterr().err
    devices.use_batchnorm_without_gpu(cfg)
    assert capsys.readouterr().err == ''


def test_without_a_gpu_sync_bn_for_all_norms_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = Config(dict(model=dict(type='EncoderDecoder'), sync_bn='torch'))
    devices.use_batchnorm_without_gpu(cfg)
    assert cfg.sync_bn is None
    assert '1 SyncBN settings' in capsys.readouterr().err


def test_with_a_gpu_sync_bn_stays(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg = sync_bn_model()
    devices.use_batchnorm_without_gpu(cfg)
    assert cfg.model.backbone.norm_cfg.type == 'SyncBN'
    assert capsys.readouterr().err == ''
