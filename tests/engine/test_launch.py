from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import _load_checkpoint
from paths import ROOT
from torch import nn

from cvt_dense.datasets import paths as data_paths
from cvt_dense.engine import launch, run_checkpoints
from cvt_dense.errors import UserError

CONFIG = """
default_scope = 'mmdet'
model = dict(type='X', backbone=dict(type='CvT', arch='cvt-13', init_cfg=dict(type='Pretrained', checkpoint='x')))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1))
param_scheduler = [dict(type='LinearLR', end=5), dict(type='MultiStepLR', milestones=[8, 11])]
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What launch sets is set back after each test."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')


def load(tmp_path: Path, text: str = CONFIG, name: str = 'config.py', **settings: Any) -> Config:
    (tmp_path / name).write_text(text)
    return launch.load_config(parse(str(tmp_path / name), **settings))


def parse(config: str, **settings: Any) -> argparse.Namespace:
    defaults = dict(cfg_options=None, work_dir=None, launcher='none', local_rank=0)
    return argparse.Namespace(**(dict(config=config) | defaults | settings))


def message(error: pytest.ExceptionInfo) -> str:
    """The message, which must be one line."""
    assert '\n' not in str(error.value)
    return str(error.value)


def test_a_config_is_read_with_overrides(tmp_path: Path) -> None:
    options = {'model.backbone.init_cfg': None, 'param_scheduler.0.end': 7, 'randomness.seed': 1}
    cfg = load(tmp_path, cfg_options=options, launcher='pytorch')
    assert cfg.model.backbone.init_cfg is None
    assert (cfg.param_scheduler[0].end, cfg.randomness.seed) == (7, 1)
    assert cfg.launcher == 'pytorch'


def test_overrides_of_the_command_line_are_understood(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    launch.add_common_arguments(parser)
    (tmp_path / 'config.py').write_text(CONFIG)
    options = ['model.backbone.init_cfg=None', 'model.backbone.out_indices=[0,1]', 'optim_wrapper.optimizer.lr=1e-3']
    args = parser.parse_args([str(tmp_path / 'config.py'), '--local-rank', '3', '--cfg-options', *options])
    cfg = launch.load_config(args)
    assert cfg.model.backbone.init_cfg is None
    assert cfg.model.backbone.out_indices == [0, 1]
    assert cfg.optim_wrapper.optimizer.lr == 1e-3


def test_the_launchers_rank_counts_more_than_the_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path, local_rank=3)
    assert os.environ['LOCAL_RANK'] == '0'
    monkeypatch.delenv('LOCAL_RANK')
    load(tmp_path, local_rank=3)
    assert os.environ['LOCAL_RANK'] == '3'


@pytest.mark.parametrize(
    ('of_config', 'of_argument', 'expected'),
    [
        (None, None, os.path.join('work_dirs', 'config')),
        ('a', None, 'a'),
        ('a', 'b', 'b'),
        (None, 'b', 'b'),
    ],
)
def test_the_work_directory(tmp_path: Path, of_config: str | None, of_argument: str | None, expected: str) -> None:
    cfg = load(tmp_path, CONFIG + f'work_dir = {of_config!r}\n', work_dir=of_argument)
    assert cfg.work_dir == expected


@pytest.mark.parametrize('name', ['missing.py', '.'])
def test_a_missing_config_says_where_the_configs_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r'does not exist; .+ configs/') as error:
        launch.load_config(parse(str(tmp_path / name)))
    assert str(tmp_path / name) in message(error)


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('model = dict(\n', 'SyntaxError'),
        ("_base_ = 'missing.py'\n" + CONFIG, 'missing.py'),
        ('x = undefined\n', 'NameError'),
        (
            "custom_imports = dict(imports=['no_such_package'], allow_failed_imports=False)\n" + CONFIG,
            'no_such_package',
        ),
        ('x = 1 / 0\n' + CONFIG, 'ZeroDivisionError'),
        ('x = [][1]\n' + CONFIG, 'IndexError'),
        ('x = [].no_such_attribute\n' + CONFIG, 'no_such_attribute'),
        ('x = {{_base_.missing}}\n' + CONFIG, 'missing'),
    ],
)
def test_a_broken_config_says_what_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match='cannot be read') as error:
        load(tmp_path, text)
    assert 'config.py' in message(error)
    assert reason in message(error)


@pytest.mark.parametrize(('name', 'text'), [('a.yaml', 'a: [1\n'), ('a.json', '{"a":'), ('a.txt', 'x'), ('a.py', '\0')])
def test_a_config_of_another_kind_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UserError, match='cannot be read') as error:
        load(tmp_path, text, name)
    assert name in message(error)


@pytest.mark.parametrize('text', ['x = 1\n', "default_scope = 'mmdet'\n", "model = dict(type='X')\n"])
def test_a_part_of_a_config_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match='sets no model or no default_scope'):
        load(tmp_path, text)


@pytest.mark.parametrize('option', ['modle.backbone.arch', 'modle'])
def test_an_override_that_nothing_would_read_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match=f"--cfg-options {option}: neither the config nor the Runner .+ 'modle'"):
        load(tmp_path, cfg_options={option: 'cvt-21'})


@pytest.mark.parametrize(
    'option', ['param_scheduler.5.end', 'param_scheduler.end', 'model.backbone.arch.depths', 'default_scope.0']
)
def test_an_override_that_leads_nowhere_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, cfg_options={option: 1})
    assert option in message(error)


def detection(root: Path) -> dict[str, Any]:
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/training/'),
    )


def segmentation(root: Path) -> dict[str, Any]:
    return dict(data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='labels'))


def configured(dataset: dict[str, Any] | None, split: str = 'train', **settings: Any) -> Config:
    loader = None if dataset is None else dict(batch_size=1, dataset=dataset)
    return Config({f'{split}_dataloader': loader, 'data_hint': 'make it thus', **settings})


def test_missing_data_is_named_from_the_outside_in(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    cfg = configured(detection(root))
    annotations, images = root / 'annotations' / 'train.json', root / 'images' / 'training'

    def missing() -> str:
        with pytest.raises(UserError) as error:
            data_paths.check_data(cfg, ('train',))
        return message(error)

    assert missing() == f'data root {root} does not exist; make it thus'
    annotations.parent.mkdir(parents=True)
    assert missing() == f'annotation file {annotations} does not exist; make it thus'
    annotations.touch()
    assert missing() == f'img folder {images} does not exist; make it thus'
    images.mkdir(parents=True)
    assert missing() == f'img folder {images} is empty; make it thus'
    (images / '1.jpg').touch()
    data_paths.check_data(cfg, ('train',))


def filled(folder: Path) -> None:
    folder.mkdir()
    (folder / '1.png').touch()


def test_of_segmentation_both_folders_are_needed(tmp_path: Path) -> None:
    filled(tmp_path / 'images')
    cfg = configured(segmentation(tmp_path))
    with pytest.raises(UserError, match=f'seg_map_path folder {tmp_path}/labels does not exist; make it thus'):
        data_paths.check_data(cfg, ('train',))
    filled(tmp_path / 'labels')
    data_paths.check_data(cfg, ('train',))


def test_without_a_hint_the_data_root_is_the_hint(tmp_path: Path) -> None:
    cfg = Config(dict(train_dataloader=dict(dataset=detection(tmp_path / 'data'))))
    with pytest.raises(UserError, match='set data_root in the config'):
        data_paths.check_data(cfg, ('train',))


def test_an_absolute_annotation_file_and_no_data_root_will_do(tmp_path: Path) -> None:
    (tmp_path / 'a.json').touch()
    dataset = dict(ann_file=str(tmp_path / 'a.json'), data_prefix=dict(img=str(tmp_path), seg=None))
    data_paths.check_data(configured(dataset), ('train',))
    data_paths.check_data(configured(dataset | dict(data_root=None, data_prefix=dict())), ('train',))


def test_only_the_splits_that_are_used_are_looked_at(tmp_path: Path) -> None:
    cfg = configured(detection(tmp_path / 'data'), split='val')
    data_paths.check_data(cfg, ('train', 'test'))
    with pytest.raises(UserError):
        data_paths.check_data(cfg, ('train', 'val'))
    data_paths.check_data(configured(None), ('train',))


WRAPPERS: list[Callable[..., dict[str, Any]]] = [
    lambda good, bad: dict(type='RepeatDataset', times=3, dataset=bad),
    lambda good, bad: dict(type='ConcatDataset', datasets=[good, bad]),
    lambda good, bad: dict(type='ConcatDataset', datasets=(bad, good)),
    lambda good, bad: dict(type='MultiImageMixDataset', dataset=dict(type='ConcatDataset', datasets=[good, bad])),
    lambda good, bad: dict(type='ConcatDataset', datasets=[good, dict(type='RepeatDataset', times=2, dataset=bad)]),
]


@pytest.mark.parametrize('wrap', WRAPPERS)
def test_wrapped_datasets_are_looked_into(tmp_path: Path, wrap: Callable[..., dict[str, Any]]) -> None:
    filled(tmp_path / 'images')
    filled(tmp_path / 'labels')
    good, bad = segmentation(tmp_path), detection(tmp_path / 'missing')
    with pytest.raises(UserError, match=f'data root {tmp_path}/missing does not exist'):
        data_paths.check_data(configured(wrap(good, bad)), ('train',))
    data_paths.check_data(configured(wrap(good, good)), ('train',))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for path, what in ((tmp_path / 'a.pth', 'does not exist'), (tmp_path, 'is a folder, not a file')):
        with pytest.raises(UserError, match=f'checkpoint {path} {what}'):
            run_checkpoints.check_checkpoint(str(path))
    (tmp_path / 'a.pth').touch()
    run_checkpoints.check_checkpoint(str(tmp_path / 'a.pth'))
    run_checkpoints.check_checkpoint('https://example.org/a.pth')


def test_resuming_from_a_file_needs_no_pretrained_weights(tmp_path: Path) -> None:
    torch.save(dict(meta=dict(seed=7)), tmp_path / 'epoch_3.pth')
    cfg = load(tmp_path, CONFIG + "load_from = 'other.pth'\n")
    run_checkpoints.set_resume(cfg, str(tmp_path / 'epoch_3.pth'))
    assert cfg.resume is True
    assert cfg.load_from == str(tmp_path / 'epoch_3.pth')
    assert cfg.model.backbone.init_cfg is None


@pytest.mark.parametrize(('given', 'expected'), [(None, 7), (3, 3)])
def test_a_seed_that_was_drawn_is_taken_from_the_checkpoint(tmp_path: Path, given: int | None, expected: int) -> None:
    torch.save(dict(meta=dict(seed=7)), tmp_path / 'epoch_3.pth')
    cfg = load(tmp_path, CONFIG + f'randomness = dict(seed={given}, deterministic=True)\n')
    run_checkpoints.set_resume(cfg, str(tmp_path / 'epoch_3.pth'))
    assert cfg.randomness == dict(seed=expected, deterministic=True)


def test_resuming_from_a_missing_file_is_refused(tmp_path: Path) -> None:
    cfg = load(tmp_path)
    with pytest.raises(UserError, match=r'epoch_4.pth does not exist'):
        run_checkpoints.set_resume(cfg, str(tmp_path / 'epoch_4.pth'))


def test_resuming_by_itself_takes_the_newest_checkpoint(tmp_path: Path) -> None:
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    cfg = load(tmp_path, work_dir=str(work_dir))
    with pytest.raises(UserError, match=r'epoch_2.pth does not exist'):
        run_checkpoints.set_resume(cfg, 'auto')
    torch.save(dict(state_dict={}), work_dir / 'epoch_2.pth')
    run_checkpoints.set_resume(cfg, 'auto')
    assert cfg.resume is True
    assert cfg.load_from == str(work_dir / 'epoch_2.pth')
    assert cfg.model.backbone.init_cfg is None


@pytest.mark.parametrize('note', [None, '', 'elsewhere/epoch_10.pth'])
def test_resuming_by_itself_finds_its_way_after_a_kill_between_writes(tmp_path: Path, note: str | None) -> None:
    for name in ('epoch_9', 'epoch_10', 'best_coco_bbox_mAP_epoch_12'):
        torch.save(dict(state_dict={}), tmp_path / f'{name}.pth')
    if note is not None:
        (tmp_path / 'last_checkpoint').write_text(note)
    cfg = load(tmp_path, work_dir=str(tmp_path))
    run_checkpoints.set_resume(cfg, 'auto')
    assert cfg.load_from == str(tmp_path / 'epoch_10.pth')


def test_resuming_by_itself_passes_over_what_was_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (500, 1000):
        torch.save(dict(state_dict=dict(weight=torch.zeros(1000))), tmp_path / f'iter_{number}.pth')
    with open(tmp_path / 'iter_1000.pth', 'r+b') as file:
        file.truncate(1000)
    cfg = load(tmp_path, work_dir=str(tmp_path))
    run_checkpoints.set_resume(cfg, 'auto')
    assert cfg.load_from == str(tmp_path / 'iter_500.pth')
    assert f'checkpoint {tmp_path / "iter_1000.pth"} is damaged' in capsys.readouterr().err
    (tmp_path / 'iter_500.pth').write_bytes(b'')
    with pytest.raises(UserError, match=f'no checkpoint in {tmp_path} can be read'):
        run_checkpoints.set_resume(cfg, 'auto')


@pytest.mark.parametrize('exists', [True, False])
def test_with_nothing_to_resume_the_run_starts_from_pretrained_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    work_dir = tmp_path / 'run'
    if exists:
        work_dir.mkdir()
    cfg = load(tmp_path, work_dir=str(work_dir))
    run_checkpoints.set_resume(cfg, 'auto')
    assert not cfg.get('resume')
    assert not cfg.get('load_from')
    assert cfg.model.backbone.init_cfg.checkpoint == 'x'
    assert f'nothing to resume in {work_dir}: starting afresh' in capsys.readouterr().err


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_a_distributed_run_that_could_not_start_is_refused(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config(dict(launcher=launcher))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    launch.prepare_launcher(cfg)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match=f'--launcher {launcher} needs GPUs.*use torchrun'):
        launch.prepare_launcher(cfg)
    launch.prepare_launcher(Config(dict(launcher='none')))


def test_fsdp_without_a_gpu_is_refused_before_a_checkpoint_would_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setenv('RANK', '0')
    cfg = Config(dict(launcher='pytorch', strategy=dict(type='FSDPStrategy'), default_hooks=dict()))
    with pytest.raises(UserError, match='FSDP saves checkpoints on GPUs only'):
        launch.prepare_launcher(cfg)
    with pytest.raises(UserError, match='FSDPStrategy needs several processes'):
        launch.prepare_launcher(Config(dict(launcher='none', strategy=dict(type='FSDPStrategy'))))


def test_without_torchrun_its_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UserError, match='torchrun --nproc_per_node=N'):
        launch.prepare_launcher(Config(dict(launcher='pytorch')))


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
    launch.hide_gpu_without_operators(Config(dict(default_scope=scope)))
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ('' if hidden else '0')
    assert ('the GPU is not used: mmcv was built without CUDA' in capsys.readouterr().err) is hidden


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 4)


@pytest.mark.parametrize('wrap', [dict, lambda tensors: dict(state_dict=tensors, meta={})])
def test_a_checkpoint_must_cover_the_model(wrap: Callable[[dict], dict], tmp_path: Path) -> None:
    model, path = Detector(), str(tmp_path / 'a.pth')
    tensors = model.state_dict()
    counter = 'backbone.1.num_batches_tracked'
    torch.save(wrap({key: t for key, t in tensors.items() if key != counter}), path)
    run_checkpoints.check_weights(model, path)
    torch.save(wrap(tensors | {'head.weight': torch.zeros(5, 3), 'head.bias': torch.zeros(5)}), path)
    run_checkpoints.check_weights(model, path, prefix='backbone.')
    with pytest.raises(UserError, match=r'it has other shapes for head\.weight and 1 more') as error:
        run_checkpoints.check_weights(model, path)
    assert path in message(error)
    torch.save(wrap({key: t for key, t in tensors.items() if key != 'backbone.0.bias'}), path)
    with pytest.raises(UserError, match=r'it lacks backbone\.0\.bias$'):
        run_checkpoints.check_weights(model, path, prefix='backbone.')
    run_checkpoints.check_weights(model, 'https://example.org/a.pth')


def test_settings_that_nothing_can_be_built_from_are_one_line(tmp_path: Path) -> None:
    cfg = load(tmp_path, CONFIG.replace("type='X', backbone=", "type='ImgDataPreprocessor', no_such_setting="))
    with pytest.raises(UserError, match='the config cannot be built: ') as error:
        launch.build_runner(cfg)
    message(error)


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
    launch.use_batchnorm_without_gpu(cfg)
    assert cfg.model.backbone.norm_cfg == dict(type='BN', requires_grad=True)
    assert [neck.norm_cfg.type for neck in cfg.model.neck] == ['BN', 'GN']
    assert cfg.model.head.heads[0].norm_cfg.type == 'BN'
    assert 'no GPU: 3 SyncBN settings' in capsys.readouterr().err
    launch.use_batchnorm_without_gpu(cfg)
    assert capsys.readouterr().err == ''


def test_without_a_gpu_sync_bn_for_all_norms_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = Config(dict(model=dict(type='EncoderDecoder'), sync_bn='torch'))
    launch.use_batchnorm_without_gpu(cfg)
    assert cfg.sync_bn is None
    assert '1 SyncBN settings' in capsys.readouterr().err


def test_with_a_gpu_sync_bn_stays(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg = sync_bn_model()
    launch.use_batchnorm_without_gpu(cfg)
    assert cfg.model.backbone.norm_cfg.type == 'SyncBN'
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('gpu', 'bf16', 'expected'),
    [
        (False, False, dict(type='BFloat16OptimWrapper')),
        (True, True, dict(type='BFloat16OptimWrapper')),
        (True, False, dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')),
    ],
)
@pytest.mark.parametrize('wrapper', [dict(), dict(type='OptimWrapper'), dict(type='AmpOptimWrapper', dtype='float16')])
def test_amp_takes_the_precision_that_there_is(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, bf16: bool, expected: dict[str, Any], wrapper: dict[str, str]
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: bf16)
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='AdamW'), **wrapper), custom_hooks=[dict(type='EMAHook')]))
    launch.enable_amp(cfg)
    assert cfg.optim_wrapper == dict(optimizer=dict(type='AdamW'), **expected)
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'Float32OperatorsHook']


def test_amp_with_a_special_wrapper_is_refused() -> None:
    with pytest.raises(UserError, match='not with the DeepSpeedOptimWrapper of the config'):
        launch.enable_amp(Config(dict(optim_wrapper=dict(type='DeepSpeedOptimWrapper'))))


def test_the_rate_is_scaled_if_the_config_says_for_which_batch_size_it_is() -> None:
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=16, enable=False)))
    launch.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr == dict(base_batch_size=16, enable=True)


@pytest.mark.parametrize('settings', [dict(), dict(auto_scale_lr=dict(enable=False)), dict(auto_scale_lr=None)])
def test_without_a_batch_size_the_rate_cannot_be_scaled(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r'--auto-scale-lr needs auto_scale_lr.base_batch_size'):
        launch.enable_auto_scale_lr(Config(settings))


@pytest.mark.parametrize('settings', [dict(), dict(visualizer=dict(type='Visualizer'))])
def test_tensorboard_is_logged_to_beside_what_is_logged_to_anyway(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = Config(dict(work_dir='runs/a', **settings))
    for _ in range(2):  # the second time it is there already
        launch.log_to_tensorboard(cfg)
    before = ['LocalVisBackend'] if not settings else []
    assert [backend.type for backend in cfg.visualizer.vis_backends] == [*before, 'TensorboardVisBackend']
    assert 'tensorboard --logdir runs/a' in capsys.readouterr().err


def test_without_tensorboard_its_flag_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'pip install tensorboard$'):
        launch.log_to_tensorboard(Config(dict(work_dir='runs/a')))


def evaluation(scope: str, evaluator: Any) -> Config:
    hooks = dict(visualization=dict(type='VisualizationHook'))
    visualizer = dict(type='LocalVisualizer')
    return Config(
        dict(default_scope=scope, default_hooks=hooks, visualizer=visualizer, test_evaluator=evaluator, val_evaluator=1)
    )


def test_pictures_of_detection_go_to_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = evaluation('mmdet', dict())
    launch.draw_predictions(cfg, 'pictures')
    hook = cfg.default_hooks.visualization
    assert (hook.draw, hook.interval, hook.test_out_dir) == (True, 1, str(tmp_path / 'pictures'))


def test_pictures_of_segmentation_go_to_the_folder() -> None:
    cfg = evaluation('mmseg', dict())
    launch.draw_predictions(cfg, 'pictures')
    hook = cfg.default_hooks.visualization
    assert (hook.draw, hook.interval, cfg.visualizer.save_dir) == (True, 1, 'pictures')
    assert 'test_out_dir' not in hook


@pytest.mark.parametrize('evaluator', [dict(type='CocoMetric'), [dict(type='CocoMetric')]])
@pytest.mark.parametrize('out', ['a.pkl', 'a.pickle'])
def test_predictions_of_detection_are_dumped_beside_the_metrics(evaluator: Any, out: str) -> None:
    cfg = evaluation('mmdet', evaluator)
    launch.dump_predictions(cfg, out)
    assert cfg.test_evaluator == [dict(type='CocoMetric'), dict(type='DumpDetResults', out_file_path=out)]


def test_the_toolkit_can_dump_to_every_name_that_is_let_through(tmp_path: Path) -> None:
    from mmdet.registry import METRICS

    for out in ('a.pkl', 'a.pickle'):
        cfg = evaluation('mmdet', dict(type='CocoMetric'))
        launch.dump_predictions(cfg, str(tmp_path / out))
        METRICS.build(dict(cfg.test_evaluator[1], _scope_='mmdet'))


@pytest.mark.parametrize('evaluator', [dict(type='IoUMetric'), [dict(type='IoUMetric')]])
def test_label_maps_of_segmentation_are_kept_in_a_folder(evaluator: Any) -> None:
    cfg = evaluation('mmseg', evaluator)
    launch.dump_predictions(cfg, 'maps')
    metric = cfg.test_evaluator[0] if isinstance(evaluator, list) else cfg.test_evaluator
    assert metric == dict(type='IoUMetric', output_dir='maps', keep_results=True)


@pytest.mark.parametrize(('scope', 'out'), [('mmdet', 'folder'), ('mmdet', 'a.json'), ('mmseg', 'a.pkl')])
def test_predictions_of_the_wrong_kind_are_refused(scope: str, out: str) -> None:
    with pytest.raises(UserError, match=f'--out .+ got {out}'):
        launch.dump_predictions(evaluation(scope, dict()), out)


def ended(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a run."""
    with pytest.raises(SystemExit) as exit_:
        launch.run(main)
    return exit_.value.code, capsys.readouterr().err.splitlines()


def test_mmengine_does_not_run_code_in_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable, tuple[str]]:
            return os.system, (f'touch {tmp_path / "created"}',)

    torch.save({'state_dict': {}, 'meta': Payload()}, tmp_path / 'a.pth')
    code, lines = ended(lambda: _load_checkpoint(str(tmp_path / 'a.pth')), capsys)
    assert not (tmp_path / 'created').exists()
    assert code == 2
    assert 'a.pth was refused: it is damaged, or holds more than plain weights' in lines[-1]
    assert 'Traceback' not in ''.join(lines)


def test_a_damaged_checkpoint_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({'state_dict': {'a': torch.zeros(100)}}, tmp_path / 'a.pth')
    whole = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(whole[: len(whole) // 2])

    def main() -> None:
        run_checkpoints.check_checkpoint(str(tmp_path / 'a.pth'))
        _load_checkpoint(str(tmp_path / 'a.pth'))

    code, lines = ended(main, capsys)
    assert code == 2
    assert 'a.pth' in lines[-1]


def test_a_tool_ends_with_one_line_and_2() -> None:
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'train.py'), 'missing.py']
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        'error: config missing.py does not exist; the ones that come with cvt_dense are in configs/'
    ]
