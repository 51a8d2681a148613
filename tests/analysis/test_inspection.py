from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from costs import Costs
from families import FAMILIES, Family, each_family
from golden import TINY, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cvt_dense import CMTClassifier, CvTClassifier, CvTTrunk
from cvt_dense.analysis.inspection import (
    Lattice,
    attention_row,
    effective_rank,
    inspect_stages,
    principal_components,
    to_pixels,
)
from cvt_dense.models.trunk import Trunk

CVT = FAMILIES['cvt']


def tiny(family: Family = CVT, **settings: Any) -> Trunk:
    """A small trunk whose attention is far from uniform."""
    arch = dict(family.tiny)
    if 'kv_stride' in settings:
        arch['kv_stride'] = settings.pop('kv_stride')
    trunk = family.trunk(arch, **settings)
    trunk.load_state_dict(weights(trunk))
    return trunk.eval()


def attention_inside(trunk: Trunk, image: Tensor) -> list[dict[str, Any]]:
    """What each block's attention computes on an image: query, key, value, outcome before its last projection."""
    seen: list[dict[str, Any]] = []
    for block in (block for stage in trunk.stages for block in stage.blocks):
        entry: dict[str, Any] = dict(module=block.attn)
        seen.append(entry)
        value = block.attn.proj_v if hasattr(block.attn, 'proj_v') else block.attn.v
        for name, projection in zip(('query', 'key', 'value'), (*block.attn.projections(), value)):
            projection.register_forward_hook(lambda m, a, out, e=entry, n=name: e.update({n: out[0]}))
        block.attn.proj.register_forward_pre_hook(lambda m, a, e=entry: e.update(attended=a[0][0]))
        block.attn.register_forward_pre_hook(lambda m, a, e=entry: e.update(size=a[1].sizes[0], others=a[2:]))
    with torch.no_grad():
        trunk(image)
    return seen


def row_of(entry: dict[str, Any], place: tuple[int, int]) -> Tensor:
    return attention_row(entry['module'], entry['query'], entry['key'], entry['size'], place, *entry['others'])


@pytest.mark.parametrize(
    ('family', 'kv_stride'), [('cvt', 2), ('cvt', [1, 2, 3]), ('cmt', (8, 4, 2, 1)), ('cmt', (3, 1, 2, 1))]
)
@pytest.mark.parametrize('window_size', [None, 5, [7, [3, None], 2], 'pretrain'])
def test_a_row_times_the_values_is_what_the_model_attends(family: str, kv_stride: Any, window_size: Any) -> None:
    if isinstance(window_size, list):
        window_size = window_size + [4] * (FAMILIES[family].num_stages - len(window_size))
    trunk = tiny(FAMILIES[family], window_size=window_size, kv_stride=kv_stride).double()
    for entry in attention_inside(trunk, torch.randn(1, 3, 83, 122).double()):
        module, (height, width) = entry['module'], entry['size']
        values = entry['value'].unflatten(1, (module.num_heads, -1))
        for row in range(height):
            for column in range(width):
                ours = torch.einsum('hk,khc->hc', row_of(entry, (row, column)), values).flatten()
                theirs = entry['attended'][int(module.with_cls_token) + row * width + column]
                torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@each_family
@pytest.mark.parametrize('window_size', [None, 4])
@pytest.mark.parametrize('point', [(0, 0), (60, 40), (121, 82)])
def test_maps_and_rows_are_the_models_own(family: Family, window_size: int | None, point: tuple[int, int]) -> None:
    trunk = tiny(family, window_size=window_size)
    image = torch.randn(1, 3, 83, 122)
    views = inspect_stages(trunk.stages, image, point)
    inside = iter(attention_inside(trunk, image))
    with torch.no_grad():
        maps = family.trunk_maps(trunk, image)
    assert [view.lattice.stride for view in views] == [4, 8, 16, 32][: family.num_stages]
    for stage, view, features in zip(trunk.stages, views, maps, strict=True):
        for place, pixel, length in zip(view.query, reversed(point), features.shape[2:]):
            centres = view.lattice.centre + view.lattice.stride * torch.arange(length)
            assert abs(centres[place] - pixel) == (centres - pixel).abs().min()
        assert torch.equal(view.features, features[0])
        assert len(view.attention) == len(stage.blocks)
        for row in view.attention:
            entry = next(inside)
            module = entry['module']
            expected = row_of(entry, view.query)
            num_prefix = int(module.with_cls_token)
            torch.testing.assert_close(row.weights.flatten(1), expected[:, num_prefix:])
            torch.testing.assert_close(row.cls_weights, expected[:, :num_prefix].sum(1))
            torch.testing.assert_close(row.weights.sum((1, 2)) + row.cls_weights, torch.ones(len(expected)))
            assert row.lattice.stride == view.lattice.stride * module.kv_stride
            if num_prefix:
                assert (row.cls_weights > 0).all()
            if window_size:
                keys = -(-window_size // module.kv_stride)
                assert 0 < (row.weights[0] > 0).sum() <= keys**2


@each_family
def test_no_hook_stays_behind_not_even_after_an_error(family: Family) -> None:
    trunk = tiny(family)
    inspect_stages(trunk.stages, torch.randn(1, 3, 32, 32), (3, 3))
    with pytest.raises(RuntimeError):
        inspect_stages(trunk.stages, torch.randn(1, 4, 32, 32), (3, 3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trunk.modules())


@each_family
def test_threads_look_into_one_model_at_once_while_others_run_it(family: Family) -> None:
    trunk = tiny(family)
    images = [torch.randn(1, 3, 40 + 8 * number, 64) for number in range(4)]
    alone = [inspect_stages(trunk.stages, image, (9, 9)) for image in images]
    start, found = threading.Barrier(5), {}

    def look(number: int) -> None:
        start.wait()
        found[number] = [inspect_stages(trunk.stages, images[number], (9, 9)) for _ in range(5)]

    def run() -> None:
        start.wait()
        with torch.no_grad():
            found['run'] = [trunk(images[0]) for _ in range(10)]

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)] + [threading.Thread(target=run)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found['run']) == 10
    for number, expected in enumerate(alone):
        for views in found[number]:
            for view, other in zip(views, expected, strict=True):
                torch.testing.assert_close(view.features, other.features)
                for row, same in zip(view.attention, other.attention, strict=True):
                    torch.testing.assert_close(row.weights, same.weights)


@each_family
def test_only_one_row_is_held_never_queries_times_keys(family: Family) -> None:
    trunk, image = tiny(family), torch.randn(1, 3, 256, 256)
    with torch.no_grad(), Costs() as plain:
        trunk(image)
    with Costs() as looked_into:
        inspect_stages(trunk.stages, image, (128, 128))
    assert looked_into.largest == plain.largest < 64 * 64 * 32 * 32
    assert looked_into.peak_bytes <= 1.2 * plain.peak_bytes  # the first stages' maps are kept


def test_a_timm_model_and_one_with_fewer_stages_can_be_looked_into() -> None:
    image = torch.randn(1, 3, 47, 50)
    classifier = CvTClassifier(TINY, num_classes=0).eval()
    assert [view.features.shape for view in inspect_stages(classifier.stages, image, (9, 9))] == [
        (16, 12, 12),
        (48, 6, 6),
        (96, 3, 3),
    ]
    classifier = CMTClassifier(FAMILIES['cmt'].tiny, num_classes=0).eval()
    assert [view.features.shape[1:] for view in inspect_stages(classifier.stages, image, (9, 9))] == [
        (12, 12),
        (6, 6),
        (3, 3),
        (1, 1),
    ]
    (view,) = inspect_stages(tiny(num_stages=1).stages, image, (9, 9))
    assert view.query == (2, 2)


@pytest.mark.parametrize('point', [(-1, 0), (0, -1), (48, 0), (0, 32)])
def test_a_point_outside_of_the_image_is_refused(point: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f'point {point[0]}, {point[1]} lies outside of the image, which has 48x32'):
        inspect_stages(tiny().stages, torch.randn(1, 3, 32, 48), point)


def test_images_are_inspected_one_at_a_time() -> None:
    with pytest.raises(ValueError, match='one image at a time, got 2'):
        inspect_stages(tiny().stages, torch.randn(2, 3, 32, 48), (0, 0))


@each_family
def test_tokens_and_keys_lie_where_their_convolutions_look(family: Family) -> None:
    """The pixels that reach a token through the convolutions are symmetric about the centre that is claimed for it."""
    trunk = tiny(family)
    views = inspect_stages(trunk.stages, torch.randn(1, 3, 256, 256), (128, 128))
    image = torch.zeros(1, 3, 256, 256, requires_grad=True)

    def assert_centred(x: Tensor, lattice: Lattice) -> None:
        middle = x.shape[-1] // 2
        (reached,) = torch.autograd.grad(x[0, 0, middle, middle], image, retain_graph=True)
        columns = reached[0, 0].sum(0).nonzero().flatten()
        assert float(columns.double().mean()) - (lattice.centre + middle * lattice.stride) in (
            0,
            0.5,
        )  # of even kernels

    def convolved(x: Tensor, conv: torch.nn.Conv2d) -> Tensor:
        # Without norms, whose gradient of a sum is 0; positive weights, so that no pixels cancel out.
        return torch.nn.functional.conv2d(
            x, torch.ones_like(conv.weight), None, conv.stride, conv.padding, groups=conv.groups
        )

    x = image
    for stage, view in zip(trunk.stages, views):
        for conv in stage.sampling():
            x = convolved(x, conv)
        assert_centred(x, view.lattice)
        attention = stage.blocks[0].attn
        key_conv = attention.conv_proj_k.conv if hasattr(attention, 'conv_proj_k') else attention.sr and attention.sr[0]
        if key_conv is not None:
            assert_centred(convolved(x, key_conv), view.attention[0].lattice)


@settings(max_examples=30)
@given(length=st.integers(16, 400), stride=st.sampled_from([4, 8, 16, 32]), centre=st.integers(0, 15))
def test_each_pixel_goes_to_the_token_with_the_nearest_centre(length: int, stride: int, centre: int) -> None:
    tokens = -(-length // stride)
    pixels = torch.arange(length)
    distance = (pixels[:, None] - (centre + stride * torch.arange(tokens))).abs()
    found = Lattice(stride, centre).nearest(pixels, tokens)
    assert torch.equal(distance.gather(1, found[:, None])[:, 0], distance.amin(1))


def test_maps_are_spread_over_the_image_by_place() -> None:
    x = torch.zeros(2, 5, 7)
    x[1, 2, 4] = 1
    spread = to_pixels(x, Lattice(8, 1), (40, 53))
    assert spread.shape == (2, 40, 53)
    rows, columns = spread[1].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (13, 20, 29, 36)
    assert not spread[0].any()


def test_principal_components_find_the_directions_that_were_put_in() -> None:
    directions = torch.linalg.qr(torch.randn(24, 3))[0]
    places = torch.rand(3, 20, 30) ** 3 * torch.tensor([9.0, 3.0, 1.0])[:, None, None]
    components = principal_components(torch.einsum('cd,dhw->chw', directions, places) + 5)
    assert components.shape == (3, 20, 30)
    assert components.min() == 0
    assert components.max() == 1
    for ours, theirs in zip(components.flatten(1), places.flatten(1)):
        assert abs(torch.corrcoef(torch.stack((ours, theirs.double())))[0, 1]) > 0.98


def test_the_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.randn(8, 100, 100)) == pytest.approx(8, rel=1e-2)
    line = torch.randn(8, 1, 1) * torch.randn(1, 30, 30)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(8, 1, 1)) == pytest.approx(1)


def test_keys_attended_to_are_as_many_as_share_the_weight() -> None:
    trunk = CvTTrunk(TINY).eval()
    for block in (block for stage in trunk.stages for block in stage.blocks):
        torch.nn.init.zeros_(block.attn.proj_q.weight)
    for view in inspect_stages(trunk.stages, torch.randn(1, 3, 64, 96), (40, 40)):
        for row in view.attention:
            keys = row.weights[0].numel() + bool(row.cls_weights.any())
            torch.testing.assert_close(row.keys_attended_to(), torch.full((len(row.weights),), float(keys)))


@each_family
def test_the_smallest_image_has_pictures_too(family: Family) -> None:
    image = torch.randn(1, 3, family.min_size, family.min_size)
    for view in inspect_stages(tiny(family).stages, image, (15, 15)):
        assert principal_components(view.features).isfinite().all()
        assert effective_rank(view.features) >= 1
