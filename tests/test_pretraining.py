"""What pre-training by timm's train.py needs of our models, as far as it can be held without that script."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import tiny_timm
import torch
from golden import TINY
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from cvt_dense import CvT, CvTTrunk
from cvt_dense.checkpoints import load_pretrained, read_checkpoint

CLASSES = 5


def optimizer_of(model: nn.Module, layer_decay: float | None = 0.75) -> torch.optim.Optimizer:
    """As ``--opt adamw --lr 1 --weight-decay 0.05 --layer-decay 0.75`` makes it."""
    return create_optimizer_v2(model, opt='adamw', lr=1.0, weight_decay=0.05, layer_decay=layer_decay)


@pytest.mark.parametrize('name', ['cvt_13', 'cmt_ti'])
def test_with_layer_decay_each_parameter_has_the_rate_of_its_depth(name: str) -> None:
    model = timm.create_model(name)
    groups = optimizer_of(model).param_groups
    scales = {id(p): group['lr_scale'] for group in groups for p in group['params']}
    assert sum(len(group['params']) for group in groups) == len(scales) == len(list(model.parameters()))
    rates = {key: scales[id(parameter)] for key, parameter in model.named_parameters()}
    blocks = []
    for stage, depth in enumerate(model.arch.depths):
        for part in ('patch_embed', 'cls_token', 'relative_pos'):
            found = {rate for key, rate in rates.items() if key.startswith(f'stages.{stage}.{part}')}
            assert len(found) <= 1
        blocks.append(rates[f'stages.{stage}.patch_embed.proj.weight'])
        for block in range(depth):
            (rate,) = {rate for key, rate in rates.items() if key.startswith(f'stages.{stage}.blocks.{block}.')}
            blocks.append(rate)
    assert blocks == pytest.approx([0.75 ** (len(blocks) - index) for index in range(len(blocks))])
    assert rates['head.weight'] == 1
    stem = [rate for key, rate in rates.items() if '.stem.' in key]
    assert all(rate == pytest.approx(0.75 * blocks[0]) for rate in stem)


@pytest.mark.parametrize('name', ['cvt_13', 'cmt_ti'])
@pytest.mark.parametrize('layer_decay', [None, 0.75])
def test_weights_of_layers_alone_decay(name: str, layer_decay: float | None) -> None:
    model = timm.create_model(name)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    for group in optimizer_of(model, layer_decay).param_groups:
        for parameter in group['params']:
            key = names[id(parameter)]
            is_free = parameter.ndim == 1 or key.endswith(('cls_token', 'relative_pos'))
            assert group['weight_decay'] == (0 if is_free else 0.05), key


@tiny_timm.each_model
def test_a_step_of_the_recipe_is_finite(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, drop_path_rate=0.1).train()
    optimizer = optimizer_of(model)
    average = ModelEmaV3(model, decay=0.5)
    before = average.module.head.weight.clone()
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    for step in range(4):  # mixup in some, cutmix in others
        images, labels = mixup(torch.randn(4, 3, 64, 64), torch.arange(4))
        with torch.autocast('cpu', torch.bfloat16):
            loss = SoftTargetCrossEntropy()(model(images), labels)
        loss.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.dtype == torch.float32
        for group in optimizer.param_groups:
            group['lr'] = 1e-3 * group['lr_scale']
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step=step)
        assert loss.isfinite()
    assert not torch.equal(average.module.head.weight, before)
    assert not torch.equal(average.module.head.weight, model.head.weight)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        assert average(torch.randn(2, 3, 64, 64)).isfinite().all()


def trained(folder: Path, with_average: bool) -> tuple[str, nn.Module, nn.Module | None]:
    """A checkpoint that timm writes in training, the model and, if it is to have one, its average."""
    torch.manual_seed(1)
    model = timm.create_model('small_cvt', num_classes=CLASSES)
    average = ModelEmaV3(model, decay=0.5) if with_average else None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    args = Namespace(model='small_cvt', lr=0.002, model_kwargs=dict(arch=TINY), scale=[0.08, 1.0])
    saver = CheckpointSaver(
        model, optimizer_of(model), args=args, model_ema=average, checkpoint_dir=folder, recovery_dir=folder
    )
    saver.save_checkpoint(0, metric=12.5)
    return str(folder / 'model_best.pth.tar'), model, average.module if average else None


@pytest.mark.parametrize('with_average', [False, True])
def test_what_timm_wrote_in_training_is_read_as_timm_reads_it(with_average: bool, tmp_path: Path) -> None:
    file, model, average = trained(tmp_path, with_average)
    expected = (average if with_average else model).state_dict()
    by_timm = timm.create_model('small_cvt', num_classes=CLASSES, checkpoint_path=file).state_dict()
    assert all(torch.equal(by_timm[key], tensor) for key, tensor in expected.items())
    trunk = CvTTrunk(TINY)
    assert 'timm format' in str(load_pretrained(trunk, file))
    backbone = CvT(arch=TINY, init_cfg=dict(type='Pretrained', checkpoint=file))
    backbone.init_weights()
    overlay = dict(state_dict=dict(read_checkpoint(file)), num_classes=CLASSES)  # as validate_imagenet.py does
    again = timm.create_model('small_cvt', num_classes=CLASSES, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(again.head.weight, expected['head.weight'])
    for key, tensor in expected.items():
        if key.startswith('stages.'):
            ours = re.sub(r'^stages\.', 'stage', key)
            assert torch.equal(trunk.state_dict()[ours], tensor)
            assert torch.equal(backbone.state_dict()[ours], tensor)


def test_fine_tuning_for_other_classes_takes_all_but_the_head(tmp_path: Path) -> None:
    file, model, _ = trained(tmp_path, with_average=False)
    overlay = dict(file=file, num_classes=-1)  # of train.py --pretrained --pretrained-path FILE
    tuned = timm.create_model('small_cvt', num_classes=9, pretrained=True, pretrained_cfg_overlay=overlay)
    assert tuned.head.weight.shape == (9, TINY['embed_dims'][-1])
    expected = model.state_dict()
    assert all(
        torch.equal(tensor, expected[key]) for key, tensor in tuned.state_dict().items() if not key.startswith('head.')
    )
