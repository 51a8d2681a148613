"""Images of several sizes in one batch: each gives what it gives alone, whatever the padding holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from costs import Costs
from families import FAMILIES, Family, each_family, with_statistics
from golden import weights
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvt_dense import CvTTrunk, load_pretrained
from cvt_dense.models.blocks import ResidualBlock
from cvt_dense.models.norms import keeps_statistics

ARCHS = [
    dict(embed_dims=[8, 12, 16], num_heads=[1, 2, 4], depths=[1, 1, 2]),
    dict(embed_dims=[8, 16], num_heads=[2, 2], depths=[1, 2], kv_stride=[1, [3, 2]], mlp_ratio=2),
    dict(embed_dims=[8], num_heads=[1], depths=[1]),
]
#: Small ones of each family.
ARCHS_OF = {
    'CvT': ARCHS,
    'CMT': [
        FAMILIES['cmt'].tiny,
        FAMILIES['cmt'].small,
        FAMILIES['cmt'].small | dict(kv_stride=[3, 1], depths=[1, 2], pretrain_size=(40, 70)),
    ],
}
MORE = st.integers(0, 54)  # pixels than the smallest side of a family
TOLERANCE = 1e-5  # of each map's largest value


def padded(sizes: list[tuple[int, int]], border: int = 0, value: float = float('nan')) -> torch.Tensor:
    """A batch of images of these sizes; ``value`` is what the padding holds."""
    height, width = (max(sides) + border for sides in zip(*sizes))
    x = torch.randn(len(sizes), 3, height, width)
    for image, (h, w) in zip(x, sizes):
        image[:, h:], image[:, :, w:] = value, value
    return x


def assert_each_is_as_alone(ours: tuple[torch.Tensor, ...], alone: list[tuple[torch.Tensor, ...]]) -> None:
    for place, maps in enumerate(alone):
        for x, (expected,) in zip(ours, maps, strict=True):
            height, width = expected.shape[1:]
            inside = x[place, :, :height, :width]
            assert (inside - expected).abs().max() <= TOLERANCE * expected.abs().max()
            assert not x[place, :, height:].any()
            assert not x[place, :, :, width:].any()


@each_family
@given(
    arch=st.integers(0, 2),
    window=st.sampled_from([None, 1, 4, 7]),
    sizes=st.lists(st.tuples(MORE, MORE), min_size=1, max_size=4),
    repeated=st.booleans(),
    border=st.integers(0, 40),
    training=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_each_image_gives_what_it_gives_alone(
    family: Family,
    arch: int,
    window: int | None,
    sizes: list[tuple[int, int]],
    repeated: bool,
    border: int,
    training: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    least = family.min_size
    sizes = [(least + height, least + width) for height, width in ([*sizes, sizes[0]] if repeated else sizes)]
    variant = ARCHS_OF[family.name][arch]
    out_indices = range(len(variant['depths']) + 1)  # with the strided convolution behind the last stage
    backbone = family.build(arch=variant, out_indices=out_indices, window_size=window, drop_path_rate=0.0)
    with_statistics(backbone).train(training)
    x = padded(sizes, border)
    with torch.no_grad():
        ours = backbone(x, sizes)
        alone = [backbone(image[None, :, :height, :width]) for image, (height, width) in zip(x, sizes)]
    assert_each_is_as_alone(ours, alone)
    assert all(x.is_contiguous() for x in ours)


@each_family
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('window_size', [None, 4])
def test_gradients_are_the_sum_of_those_alone(family: Family, window_size: int | None, with_cp: bool) -> None:
    torch.manual_seed(0)
    sizes = [(40, 56), (33, 32), (40, 56), (64, 31)]
    settings_ = dict(arch=ARCHS_OF[family.name][0], window_size=window_size, with_cp=with_cp, drop_path_rate=0.0)
    backbone = family.build(**settings_).double()
    with_statistics(backbone).train()
    x = padded(sizes, border=5).double()
    names, parameters = zip(*backbone.named_parameters())
    ours = torch.autograd.grad(sum(y.square().sum() for y in backbone(x, sizes)), parameters)
    alone = sum(y.square().sum() for image, (h, w) in zip(x, sizes) for y in backbone(image[None, :, :h, :w]))
    for name, got, want in zip(names, ours, torch.autograd.grad(alone, parameters)):
        torch.testing.assert_close(got, want, msg=lambda message, name=name: f'{name}: {message}')


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_batch_norm_in_training_sees_all_images_once_and_no_padding(with_cp: bool) -> None:
    torch.manual_seed(0)
    sizes = [(40, 56), (33, 17), (64, 30)]
    trunk = CvTTrunk(ARCHS[0], with_cp=with_cp).train()
    projection = trunk.stage0.blocks[0].attn.conv_proj_k
    projected: list[torch.Tensor] = []
    projection.conv.register_forward_hook(lambda module, args, out: projected.append(out.detach()))
    with torch.no_grad():
        trunk(padded(sizes, border=9), sizes)
    places = torch.cat([x.permute(1, 0, 2, 3).flatten(1) for x in projected], dim=1)
    assert places.shape[1] == sum(-(-((h + 1) // 4) // 2) * -(-((w + 1) // 4) // 2) for h, w in sizes)
    torch.testing.assert_close(projection.bn.running_mean, 0.1 * places.mean(1))
    torch.testing.assert_close(projection.bn.running_var, 0.9 + 0.1 * places.var(1))
    counts = [int(m.num_batches_tracked) for m in trunk.modules() if keeps_statistics(m)]
    assert counts == [1] * len(counts)


@each_family
def test_batch_norms_are_called_equally_often_whatever_the_sizes(family: Family) -> None:
    """So that processes which synchronise their statistics do not wait for each other."""
    trunk = family.trunk(family.tiny).train()
    calls: list[str] = []
    for name, module in trunk.named_modules():
        if keeps_statistics(module) or isinstance(module, ResidualBlock):  # which FSDP gathers one by one
            module.register_forward_hook(lambda module, args, out, name=name: calls.append(name))
    seen = []
    for sizes in ([(40, 56)] * 3, [(40, 56), (33, 32), (64, 31)]):
        trunk(padded(sizes, value=0.0), sizes)
        seen.append(list(calls))
        calls.clear()
    assert seen[0] == seen[1]
    assert seen[0]


def test_drop_path_drops_the_branches_of_images_and_not_of_the_batch() -> None:
    torch.manual_seed(0)
    trunk = CvTTrunk(ARCHS[2], drop_path_rate=[0.5]).train()
    for module in trunk.modules():
        if keeps_statistics(module):
            module.eval()
    block, sizes = trunk.stage0.blocks[0], [(40, 56), (33, 17), (40, 56), (64, 30)] * 4
    x = padded(sizes)
    embedded: list[torch.Tensor] = []
    block.register_forward_pre_hook(lambda module, args: embedded.append(args[0].detach()))
    with torch.no_grad():
        maps, _ = trunk(x, sizes)
        trunk.eval()
        whole, _ = trunk(x, sizes)
    assert len({round(float(image.abs().sum()), 2) for image in maps[0]}) > len(set(sizes))
    assert not torch.equal(maps[0], whole[0])
    row = embedded[0]
    assert row.shape[0] == 1  # of all images


def test_the_cls_token_of_each_image_is_its_own() -> None:
    torch.manual_seed(0)
    sizes = [(33, 17), (40, 56), (33, 17)]
    trunk = with_statistics(CvTTrunk(ARCHS[0])).eval()
    x = padded(sizes)
    with torch.no_grad():
        _, cls_tokens = trunk(x, sizes)
        for image, (height, width), cls_token in zip(x, sizes, cls_tokens):
            torch.testing.assert_close(cls_token, trunk(image[None, :, :height, :width])[1][0])


@each_family
def test_padding_is_not_paid_for(family: Family) -> None:
    trunk, sizes = family.trunk(family.tiny).eval(), [(64, 96), (96, 64)]
    peaks = []
    for border in (0, 160):
        x = padded(sizes, border, value=0.0)
        with torch.no_grad(), Costs() as counted:
            trunk.compute(x, sizes)
        peaks.append(counted.peak_bytes)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)


@each_family
@pytest.mark.parametrize('ignored', [True, False])
def test_what_nan_does_in_one_image_is_not_seen_in_another(family: Family, ignored: bool) -> None:
    trunk, sizes = family.trunk(family.tiny).eval(), [(40, 56), (33, 32)]
    x = padded(sizes, value=0.0)
    x[0, 0, 3, 3] = float('nan')
    with torch.no_grad():
        maps = family.trunk_maps(trunk, x, sizes if ignored else None)
    assert maps[-1][0].isnan().any()
    assert not maps[-1][1].isnan().any()


CANVASES = {'published weights': 'cvt-13', 'windows of 14': 'cvt-13', 'trained': 'cvt-tiny-shapes'}


@pytest.mark.parametrize('name', CANVASES)
def test_the_canvas_of_a_real_picture_does_not_matter(name: str, data: Path) -> None:
    """The table of docs/results.md: change of the features far from the padding, by a larger canvas."""
    with Image.open(data / 'coco_mini/fixture8/images/000000025560.jpg') as picture:
        pixels = np.asarray(picture.convert('RGB').resize((320, 240)), np.float32)
    image = torch.from_numpy((pixels - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)).float().permute(2, 0, 1)
    if name == 'trained':
        trunk = CvTTrunk(dict(embed_dims=[32, 64, 128], num_heads=[1, 2, 4], depths=[1, 1, 2]))
        load_pretrained(trunk, CANVASES[name])
    else:
        trunk = CvTTrunk('cvt-13', window_size=14 if 'windows' in name else None)
        trunk.load_state_dict(weights(trunk))
    trunk.eval()
    with torch.no_grad():
        alone, _ = trunk(image[None])
        for side in (320, 512):
            x = torch.zeros(1, 3, side, side)
            x[0, :, :240, :320] = image
            for ignored in (False, True):
                maps, _ = trunk(x, [(240, 320)] if ignored else None)
                changes = [change_of_the_quarter(a, b) for a, b in zip(maps, alone)]
                what = 'ignored' if ignored else 'computed'
                print(f'{name}, {side}x{side}, padding {what}: {" / ".join(f"{c:.2g}" for c in changes)}')
                assert max(changes) < 1e-5 if ignored else max(changes) > 0.1


def change_of_the_quarter(x: torch.Tensor, alone: torch.Tensor) -> float:
    """Relative L2 change of the top left quarter of the image's map."""
    height, width = alone.shape[2] // 2, alone.shape[3] // 2
    quarter = alone[:, :, :height, :width]
    return float((x[:, :, :height, :width] - quarter).norm() / quarter.norm())
