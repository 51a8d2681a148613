"""Attention scaled by the number of keys, alone and through CvT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from golden import TINY
from torch import nn

from cvt_dense import CvT, CvTClassifier, CvTTrunk
from cvt_dense.analysis.inspection import inspect_stages
from cvt_dense.apis.export import Exportable, export
from cvt_dense.models.cvt.layers import ConvAttention
from cvt_dense.models.key_count import scale_by_key_count

TOLERANCE = 1e-5


def model(kind: type = CvTTrunk, arch: dict[str, Any] = TINY, **settings: Any) -> nn.Module:
    """The same weights whatever the settings."""
    torch.manual_seed(0)
    made = kind(arch, **settings).eval()
    for parameter in made.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))  # or attention is nearly flat whatever it is scaled by
    return made


def images(height: int, width: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def close(x: torch.Tensor, y: torch.Tensor) -> bool:
    return bool((x - y).abs().max() <= TOLERANCE * y.abs().max())


def maps(made: nn.Module, x: torch.Tensor, **more: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        found = made(x, **more)
    return list(found[0]) if isinstance(made, CvTTrunk) and not isinstance(made, CvT) else list(found)


@pytest.mark.parametrize(
    ('window_size', 'num_prefix', 'counts'),
    [(None, 0, (6 * 5,)), (None, 1, (31, 31)), (4, 0, (4,)), (4, 1, (31, 5)), (10, 1, (31, 5 * 5 + 1))],
)
def test_queries_grow_with_the_logarithm_of_the_keys_that_they_attend_to(
    window_size: int | None, num_prefix: int, counts: tuple[int, ...]
) -> None:
    size, kv_stride = (11, 10), 2
    query, key = torch.randn(2, num_prefix + 110, 8), torch.randn(2, num_prefix + 30, 8)
    found = scale_by_key_count(query, key, 20, size, kv_stride, window_size, num_prefix)
    factors = (found / query).mean((0, 2))
    torch.testing.assert_close(factors[-1].item(), math.log(counts[-1]) / math.log(20))
    torch.testing.assert_close(factors[0].item(), math.log(counts[0]) / math.log(20))
    torch.testing.assert_close(found, query * factors[:, None])


@pytest.mark.parametrize('reference', [64, (64, 96), [63, 95]])
def test_images_of_the_reference_resolution_are_computed_as_without_it(reference: Any) -> None:
    """To the bit: published weights are moved at other sizes only."""
    size = (reference, reference) if isinstance(reference, int) else reference
    for x, expected in zip(maps(model(reference_resolution=reference), images(*size)), maps(model(), images(*size))):
        assert torch.equal(x, expected)


def test_images_of_other_sizes_attend_by_the_formula() -> None:
    scaled, plain = model(reference_resolution=64), model()
    x = images(128, 96)
    for (name, module), (_, other) in zip(scaled.named_modules(), plain.named_modules()):
        if isinstance(module, ConvAttention):
            stage = int(name[len('stage')])
            keys = [math.ceil(h / 2**stage / 8) * math.ceil(w / 2**stage / 8) for h, w in ((128, 96), (64, 64))]
            keys = [count + (stage == 2) for count in keys]
            other.scale *= math.log(keys[0]) / math.log(keys[1])
    for index, (found, expected) in enumerate(zip(maps(scaled, x), maps(plain, x))):
        assert close(found, expected), index
    assert not close(maps(scaled, x)[2], maps(model(), x)[2])


def test_windows_that_cover_the_map_are_global_attention() -> None:
    x = images(70, 90)
    windowed = model(reference_resolution=48, window_size=64)
    for found, expected in zip(maps(windowed, x), maps(model(reference_resolution=48), x)):
        assert close(found, expected)


@pytest.mark.parametrize('window_size', [None, 5])
def test_each_image_of_a_batch_has_its_own_number_of_keys(window_size: int | None) -> None:
    sizes = [(64, 96), (40, 50), (64, 96), (33, 95)]
    made = model(CvT, reference_resolution=48, window_size=window_size)
    batch = images(64, 96, 4)
    found = maps(made, batch, image_sizes=sizes)
    for place, (height, width) in enumerate(sizes):
        alone = maps(made, batch[place : place + 1, :, :height, :width])
        for x, expected in zip(found, alone):
            assert close(x[place : place + 1, :, : expected.shape[2], : expected.shape[3]], expected)


@pytest.mark.parametrize('window_size', [None, 5])
def test_graphs_hold_no_number_of_keys(window_size: int | None) -> None:
    """Made with one size and used with another."""
    made = model(CvT, reference_resolution=48, window_size=window_size)
    first, second = images(65, 97), images(90, 70)
    graphs = [torch.compile(made, dynamic=True, fullgraph=True, backend='eager')]
    if window_size is None:  # a trace holds the windows of one size, with or without a reference
        graphs += [torch.jit.trace(made, first, check_trace=False), torch.fx.symbolic_trace(made)]
    for graph in graphs:
        maps(graph, first)
        for found, expected in zip(maps(graph, second), maps(made, second), strict=True):
            assert close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize('window_size', [None, 5])
def test_files_hold_no_number_of_keys(window_size: int | None, tmp_path: Path) -> None:
    path = tmp_path / 'model.onnx'
    made = model(CvT, FAMILIES['cvt'].small, reference_resolution=48, window_size=window_size)
    export(Exportable(made).eval(), path)  # compares
    assert path.is_file()


def test_timms_models_take_it_and_can_be_scripted() -> None:
    made, x = model(CvTClassifier, reference_resolution=48), images(80, 64)
    assert close(torch.jit.script(made)(x), made(x))
    assert not close(made(x), model(CvTClassifier)(x))


def test_attention_is_shown_as_it_is_computed() -> None:
    """What a query gives to the keys sums to 1 in both; sharper attention has a larger maximum."""
    models = model(reference_resolution=32), model()
    sharp, plain = (
        inspect_stages(made.stages, images(128, 128), (60, 60))[0].attention[0].weights.amax((1, 2)) for made in models
    )
    assert (sharp > plain).all()


@pytest.mark.parametrize(
    ('reference', 'message'),
    [
        (15, r'at least 16 pixels, got 15$'),
        ((64,), r'got \(64,\)$'),
        ((64, 64, 3), 'got'),
        ('64', "got '64'$"),
        (64.0, r'got 64.0$'),
        (True, 'got True$'),
        (16, 'reference_resolution 16 is too small: it leaves a single key'),
    ],
)
def test_wrong_settings_are_refused(reference: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CvT(TINY, reference_resolution=reference)
