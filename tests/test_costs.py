"""What a pass costs, counted in operations and bytes rather than in seconds, so that a slower or larger one shows."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from costs import Costs
from golden import TINY
from torch import nn

from cvt_dense import CvTTrunk
from cvt_dense.analysis.flops import count_macs

BLOCKS = sum(TINY['depths'])
#: Bytes per pixel of the largest tensor there has to be: the MLP's hidden layer of stage 0, 64 float32 at stride 4.
HIDDEN = 64 * 4 / 4**2


def costs(side: int, training: bool = False, **settings: Any) -> Costs:
    """Those of a pass over one image, BatchNorm keeping its statistics as in detectors."""
    trunk = CvTTrunk(TINY, **settings).train(training)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    image = torch.randn(1, 3, side, side)
    with torch.set_grad_enabled(training), Costs() as counted:
        maps, _ = trunk(image)
        if training:
            sum(x.mean() for x in maps).backward()
    return counted


def attentions(counted: Costs) -> int:
    return sum(n for name, n in counted.kernels.items() if 'attention' in name and 'backward' not in name)


def test_memory_that_is_still_held_counts_and_memory_that_is_not_does_not() -> None:
    with Costs() as counted:
        kept = torch.zeros(1000)
        for _ in range(5):
            kept = kept + 1  # two at a time
        view = kept.view(10, 100)[2:]
    assert counted.peak_bytes == 2 * 4000
    assert counted.kernels['add'] == 5
    assert counted.largest == 1000
    assert view.shape == (8, 100)


def test_each_block_runs_the_kernels_that_it_needs_and_copies_no_map() -> None:
    kernels = costs(128).kernels
    assert attentions(costs(128)) == BLOCKS
    assert kernels['convolution'] == 3 + 3 * BLOCKS
    assert kernels['addmm'] == 6 * BLOCKS
    assert kernels['native_layer_norm'] == 3 + 2 * BLOCKS
    assert kernels['clone'] == 1  # of the image, to channels-last
    assert kernels['cat'] == 1 + 3 * TINY['depths'][-1]  # the cls token, to the map and to query, key and value
    copies = {'copy_', '_to_copy', 'contiguous', 'native_batch_norm', 'constant_pad_nd', 'masked_fill'}
    assert not copies & set(kernels)


def test_frozen_batchnorm_costs_no_pass_over_the_map_in_training_either() -> None:
    kernels = costs(64, training=True).kernels
    assert not [name for name in kernels if 'batch_norm' in name]


def test_evenly_cut_windows_cost_one_attention_a_block_and_the_copies_into_windows_and_back() -> None:
    exact, windowed = costs(128), costs(128, window_size=8)
    assert attentions(windowed) == attentions(exact)
    extra = windowed.kernels - exact.kernels
    assert set(extra) == {'clone'}
    assert extra['clone'] <= 4 * BLOCKS
    assert windowed.peak_bytes <= 1.1 * exact.peak_bytes


@pytest.mark.parametrize('window_size', [None, 8])
@pytest.mark.parametrize('training', [False, True])
def test_memory_grows_with_the_pixels_and_no_faster(training: bool, window_size: int | None) -> None:
    small, large = (costs(side, training, window_size=window_size) for side in (256, 512))
    assert large.largest == 4 * small.largest == (512 // 4) ** 2 * 64
    assert large.peak_bytes <= 1.01 * 4 * small.peak_bytes
    assert large.peak_bytes / 512**2 <= (18 if training else 3) * HIDDEN


def test_activation_checkpointing_halves_the_memory_for_one_more_forward_pass() -> None:
    plain, recomputed = costs(256, training=True), costs(256, training=True, with_cp=True)
    assert recomputed.peak_bytes <= 0.6 * plain.peak_bytes
    assert attentions(plain) == BLOCKS
    assert attentions(recomputed) == 2 * BLOCKS
    assert recomputed.kernels['convolution'] == 3 + 2 * 3 * BLOCKS


def test_windows_take_the_square_out_of_the_operations() -> None:
    exact, windowed = CvTTrunk(TINY), CvTTrunk(TINY, window_size=8)
    growth = [count_macs(model, 512, 512) / count_macs(model, 256, 256) for model in (exact, windowed)]
    assert growth[0] > 8
    assert growth[1] == pytest.approx(4, rel=0.01)


def test_a_step_on_images_of_mixed_sizes_costs_less_than_one_on_their_canvas() -> None:
    trunk, sizes = CvTTrunk('cvt-13').train(), [(200, 336), (336, 200)]
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.randn(2, 3, 336, 336)
    seconds, peaks = [], []
    for image_sizes in (None, sizes, None, sizes):
        start = time.perf_counter()
        with Costs() as counted:
            sum(x.mean() for x in trunk(images, image_sizes)[0]).backward()
        seconds.append(time.perf_counter() - start)
        peaks.append(counted.peak_bytes)
    ratio = peaks[3] / peaks[2]
    print(f'{seconds[3] / seconds[2]:.2f} of the time, {ratio:.2f} of the memory')  # shown by pytest -rP
    assert ratio < 0.75
