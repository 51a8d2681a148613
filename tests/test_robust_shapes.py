"""What holds for images of any size and networks of any shape, on examples that hypothesis draws."""

from __future__ import annotations

import copy
import io
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from golden import TINY, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cvt_dense import CvT, CvTClassifier, CvTTrunk
from cvt_dense.models.cvt.arch import ARCHS, Arch

#: The variants' depths and heads, with narrow heads.
NARROW = {
    name: dict(embed_dims=[4 * heads for heads in arch.num_heads], num_heads=arch.num_heads, depths=arch.depths)
    for name, arch in ARCHS.items()
}
SIDES = st.integers(16, 400)
SMALL_SIDES = st.integers(16, 160)  # where outputs are compared: mistakes show in small maps too
SEEDS = st.integers(0, 2**16)
VARIANTS = st.sampled_from(list(ARCHS))
ANY_WINDOW = st.sampled_from([None, 'pretrain', 7, 'mixed'])  # the last one is a window for one block, none for others


def expected_sizes(height: int, width: int, num_stages: int = 3) -> list[tuple[int, int]]:
    """Of the maps, as the README has them."""
    sizes = [((height + 1) // 4, (width + 1) // 4)]
    while len(sizes) < num_stages:
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return sizes


@lru_cache
def narrow(name: str, window_size: Any = None, kind: type[nn.Module] = CvT) -> nn.Module:
    """A narrow network of a variant's structure, in double precision, with weights far from their initialisation."""
    if window_size == 'mixed':
        window_size = [5, [3, *[None] * (NARROW[name]['depths'][1] - 1)], 4]
    model = kind(NARROW[name], window_size=window_size)
    model.load_state_dict(weights(model))
    return model.eval().double()


def draw_images(batch: int, height: int, width: int, seed: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def assert_same(ours: Any, theirs: Any) -> None:
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9 * float(y.abs().max()))


@settings(max_examples=25)
@given(name=VARIANTS, window_size=ANY_WINDOW, batch=st.integers(1, 3), height=SIDES, width=SIDES)
@torch.no_grad()
def test_maps_have_the_documented_sizes_and_are_finite(
    name: str, window_size: Any, batch: int, height: int, width: int
) -> None:
    model = narrow(name, window_size)
    maps = model(draw_images(batch, height, width, 0))
    sizes = expected_sizes(height, width)
    assert [x.shape for x in maps] == [(batch, c, *size) for c, size in zip(model.out_channels, sizes)]
    assert all(x.isfinite().all() and x.is_contiguous() for x in maps)


@settings(max_examples=12)
@given(
    name=VARIANTS,
    window_size=st.sampled_from([None, 'pretrain', 7]),
    batch=st.integers(1, 3),
    height=st.integers(16, 2000),
    width=st.integers(16, 2000),
)
def test_real_widths_have_the_documented_sizes_too(
    name: str, window_size: Any, batch: int, height: int, width: int
) -> None:
    """On torch's meta device, which knows shapes and computes nothing."""
    maps = on_meta(name, window_size)(torch.empty(batch, 3, height, width, device='meta'))
    sizes = expected_sizes(height, width)
    assert [x.shape for x in maps] == [(batch, c, *size) for c, size in zip(ARCHS[name].embed_dims, sizes)]


@lru_cache
def on_meta(name: str, window_size: Any) -> CvT:
    with torch.device('meta'):
        return CvT(name, window_size=window_size).eval()


@settings(max_examples=15)
@given(
    name=VARIANTS, window_size=ANY_WINDOW, batch=st.integers(2, 3), height=SMALL_SIDES, width=SMALL_SIDES, seed=SEEDS
)
@torch.no_grad()
def test_a_batch_is_as_good_as_its_images_one_by_one(
    name: str, window_size: Any, batch: int, height: int, width: int, seed: int
) -> None:
    model, x = narrow(name, window_size), draw_images(batch, height, width, seed)
    one_by_one = [model(image[None]) for image in x]
    assert_same(model(x), [torch.cat(maps) for maps in zip(*one_by_one)])


@settings(max_examples=12)
@given(name=VARIANTS, more=st.integers(0, 30), height=SMALL_SIDES, width=SMALL_SIDES, seed=SEEDS)
@torch.no_grad()
def test_windows_that_cover_the_map_change_nothing_and_smaller_ones_do(
    name: str, more: int, height: int, width: int, seed: int
) -> None:
    exact, x = narrow(name), draw_images(2, height, width, seed)
    sides = [max(size) for size in expected_sizes(height, width)]
    expected = exact(x)
    for sizes, same in (([side + more for side in sides], True), ([side // 2 for side in sides], False)):
        windowed = CvT(NARROW[name], window_size=[max(size, 1) for size in sizes]).eval().double()
        windowed.load_state_dict(exact.state_dict())
        if same:
            assert_same(windowed(x), expected)
        else:
            assert not torch.allclose(windowed(x)[0], expected[0])


@settings(max_examples=10)
@given(name=VARIANTS, window_size=ANY_WINDOW, height=SMALL_SIDES, width=SMALL_SIDES, seed=SEEDS)
@torch.no_grad()
def test_trunk_backbone_and_timm_model_compute_the_same(
    name: str, window_size: Any, height: int, width: int, seed: int
) -> None:
    x = draw_images(1, height, width, seed)
    trunk, backbone = narrow(name, window_size, CvTTrunk), narrow(name, window_size)
    classifier = CvTClassifier(NARROW[name], num_classes=0).eval().double()
    for stage, other in zip(classifier.stages, trunk.stages):
        stage.load_state_dict(other.state_dict())
        for block, same in zip(stage.blocks, other.blocks):
            block.attn.window_size = same.attn.window_size
    maps, _ = trunk(x)
    assert_same(classifier.forward_intermediates(x, intermediates_only=True), maps)
    assert_same(CvTTrunk.forward(backbone, x)[0], maps)


@st.composite
def archs(draw: st.DrawFn) -> dict[str, Any]:
    """An architecture of one to four stages, every setting of it by every rule."""
    depths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    num_heads = [draw(st.integers(1, 3)) for _ in depths]

    def spread(values: st.SearchStrategy[Any]) -> Any:
        per_stage = st.tuples(*(st.one_of(values, st.lists(values, min_size=n, max_size=n)) for n in depths))
        return draw(st.one_of(values, per_stage))

    return dict(
        embed_dims=[heads * draw(st.integers(1, 5)) for heads in num_heads],
        num_heads=num_heads,
        depths=depths,
        mlp_ratio=spread(st.sampled_from([1, 2, 3.5])),
        kv_stride=spread(st.integers(1, 4)),
    )


@settings(max_examples=30)
@given(arch=archs(), window_size=st.sampled_from([None, 'pretrain', 3]), height=SMALL_SIDES, width=SMALL_SIDES)
@torch.no_grad()
def test_any_architecture_works_and_comes_back_from_its_state_dict(
    arch: dict[str, Any], window_size: Any, height: int, width: int
) -> None:
    settings_ = dict(arch=arch, out_indices=range(len(arch['depths'])), window_size=window_size)
    model = CvT(**settings_)
    model.load_state_dict(weights(model))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = CvT(**settings_)
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = torch.randn(1, 3, height, width)
    maps = model.eval()(x)
    assert [tuple(m.shape[2:]) for m in maps] == expected_sizes(height, width, len(arch['depths']))
    assert all(m.isfinite().all() for m in maps)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.eval()(x), maps, strict=True))
    assert model.out_strides == Arch(**arch).strides


SWITCHES = {
    'train': lambda parent: parent.train(),
    'eval': lambda parent: parent.eval(),
    'train(False)': lambda parent: parent.train(False),
    'train the child': lambda parent: (parent[0].train(), parent)[1],
    'copy': copy.deepcopy,
    'double': lambda parent: parent.double(),
}


@settings(max_examples=30)
@given(
    frozen_stages=st.integers(-1, 2),
    norm_eval=st.booleans(),
    switches=st.lists(st.sampled_from(list(SWITCHES)), max_size=5),
)
def test_modes_are_as_promised_after_any_switches(frozen_stages: int, norm_eval: bool, switches: list[str]) -> None:
    """Within another module too, where a detector has the backbone."""
    parent: nn.Module = nn.Sequential(CvT(TINY, frozen_stages=frozen_stages, norm_eval=norm_eval, drop_path_rate=0.5))
    training = True
    for switch in switches:
        parent = SWITCHES[switch](parent)
        training = {'eval': False, 'train(False)': False, 'train': True, 'train the child': True}.get(switch, training)
    model = parent[0]
    assert model.training == training
    for index, stage in enumerate(model.stages):
        is_frozen = index <= frozen_stages
        for module in stage.modules():
            kept = is_frozen or (norm_eval and isinstance(module, _BatchNorm))
            assert module.training == (training and not kept)
        assert all(parameter.requires_grad != is_frozen for parameter in stage.parameters())
    assert all(parameter.requires_grad for parameter in model.norm2.parameters())


MODELS = [CvTTrunk(TINY), CvT(TINY), CvTClassifier(TINY), CvTClassifier(TINY).forward_intermediates]


@pytest.mark.parametrize('model', MODELS, ids=['trunk', 'backbone', 'timm', 'timm-intermediates'])
@settings(max_examples=30)
@given(
    shape=st.one_of(
        st.lists(st.integers(0, 40), max_size=6).filter(lambda s: len(s) != 4),
        st.tuples(st.integers(1, 2), st.sampled_from([0, 1, 2, 4, 5]), st.integers(16, 40), st.integers(16, 40)),
        st.tuples(st.just(0), st.just(3), st.integers(16, 40), st.integers(16, 40)),
        st.tuples(st.integers(1, 2), st.just(3), st.integers(0, 15), st.integers(0, 40)),
        st.tuples(st.integers(1, 2), st.just(3), st.integers(0, 40), st.integers(0, 15)),
    )
)
def test_wrong_shapes_are_refused_in_one_line_that_names_them(model: Any, shape: Any) -> None:
    with pytest.raises(ValueError, match='CvT takes') as error:
        model(torch.zeros(tuple(shape)))
    assert str(error.value).endswith(f'got shape {tuple(shape)}')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('model', MODELS, ids=['trunk', 'backbone', 'timm', 'timm-intermediates'])
@pytest.mark.parametrize(
    'dtype', [torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64], ids=lambda dtype: str(dtype)
)
def test_numbers_that_are_no_floats_are_refused(model: Any, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf'takes floating-point images, got {dtype}; convert them with \.float\(\)'):
        model(torch.zeros(1, 3, 32, 32, dtype=dtype))


@pytest.mark.parametrize('model', MODELS, ids=['trunk', 'backbone', 'timm', 'timm-intermediates'])
@pytest.mark.parametrize('x', [np.zeros((1, 3, 32, 32), np.float32), [torch.zeros(3, 32, 32)], None])
def test_what_is_no_tensor_is_refused(model: Any, x: Any) -> None:
    with pytest.raises(TypeError, match=rf'takes one tensor of \(N, 3, H, W\) images, got {type(x).__name__}$'):
        model(x)


@pytest.mark.parametrize('of_model', ['cpu', 'meta'])
def test_an_image_on_another_device_is_an_error_that_names_both(of_model: str) -> None:
    of_image = 'meta' if of_model == 'cpu' else 'cpu'
    with pytest.raises(RuntimeError, match=r'^[^\n]*device[^\n]*$') as error:
        CvT(TINY).eval().to(of_model)(torch.zeros(1, 3, 32, 32, device=of_image))
    assert of_image in str(error.value)
    assert of_model in str(error.value)


@settings(max_examples=20)
@given(
    value=st.sampled_from([float('nan'), float('inf'), -float('inf')]),
    window_size=st.sampled_from([None, 4]),
    at=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 46), st.integers(0, 63)),
)
@torch.no_grad()
def test_nan_and_infinity_show_in_the_maps_of_their_image_alone(value: float, window_size: Any, at: Any) -> None:
    model, x = narrow('cvt-13', window_size), draw_images(3, 47, 64, 0)
    expected = model(x)
    x[at] = value
    for ours, clean in zip(model(x), expected):
        assert ours[at[0]].isnan().any()
        others = [image for image in range(3) if image != at[0]]
        torch.testing.assert_close(ours[others], clean[others])


def test_real_widths_compute_what_narrow_ones_do() -> None:
    """One odd size in full: a batch as its images one by one, and windows that cover the map as none."""
    exact, covered = CvT('cvt-13').eval(), CvT('cvt-13', window_size=[24, 12, 6]).eval()
    covered.load_state_dict(exact.state_dict())
    x = torch.randn(2, 3, 61, 94)
    with torch.no_grad():
        maps, same, first = exact(x), covered(x), exact(x[:1])
    for ours, windowed, alone in zip(maps, same, first):
        torch.testing.assert_close(ours, windowed)
        torch.testing.assert_close(ours[:1], alone, atol=1e-4, rtol=1e-4)
