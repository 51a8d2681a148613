"""segmentation-models-pytorch with each depth, decoder and output stride that an encoder from stride 4 on can have."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from documents import run_block
from tiny_timm import CHANNELS, each_model
from torch import nn

IMAGES = torch.zeros(2, 3, 64, 96)


def train_and_predict(model: nn.Module) -> None:
    images = torch.rand_like(IMAGES)
    model.train()(images).mean().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
    with torch.no_grad():
        model.eval()(images[:1])
        with torch.autocast('cpu', torch.bfloat16):
            assert model(images[:1]).isfinite().all()


def build(decoder: str, name: str, depth: int, **settings: Any) -> nn.Module:
    if decoder == 'Unet':
        settings['decoder_channels'] = [8] * depth
    return getattr(smp, decoder)(f'tu-{name}', encoder_depth=depth, encoder_weights=None, classes=3, **settings)


@each_model
def test_the_block_of_the_page_runs(name: str) -> None:
    train_and_predict(run_block('integrations', 'segmentation-models-pytorch', {'cvt_13': name})['model'])


@each_model
@pytest.mark.parametrize('decoder', ['Unet', 'Segformer'])
@pytest.mark.parametrize('depth', [3, 4, 5])
def test_encoders_of_each_depth(decoder: str, name: str, depth: int) -> None:
    model = build(decoder, name, depth)
    channels = [*CHANNELS[name], CHANNELS[name][-1]][: depth - 1]
    assert model.encoder.out_channels == [3, 0, *channels]
    assert model.encoder.output_stride == 2**depth
    train_and_predict(model)


@each_model
def test_a_feature_pyramid(name: str) -> None:
    train_and_predict(build('FPN', name, 5))


@pytest.mark.parametrize('decoder', ['DeepLabV3', 'DeepLabV3Plus'])
@pytest.mark.parametrize(
    ('name', 'depth', 'stride'),
    [('small_cvt', 5, 16), ('small_cvt', 4, 16), ('small_cvt', 3, 8), ('small_cmt', 4, 16), ('small_cmt', 3, 8)],
)
def test_output_strides(decoder: str, name: str, depth: int, stride: int) -> None:
    model = build(decoder, name, depth, encoder_output_stride=stride)
    assert model.encoder(IMAGES)[-1].shape[2:] == (64 // stride, 96 // stride)
    assert model.eval()(IMAGES).shape[2:] == IMAGES.shape[2:]
    train_and_predict(model)


@pytest.mark.parametrize(('name', 'stride', 'least'), [('small_cvt', 8, 16), ('small_cmt', 16, 32)])
def test_output_strides_that_would_take_dilation_are_refused(name: str, stride: int, least: int) -> None:
    with pytest.raises(ValueError, match=f'^output_stride must be at least {least}, .* cannot be dilated'):
        smp.DeepLabV3(f'tu-{name}', encoder_weights=None, encoder_output_stride=stride)
