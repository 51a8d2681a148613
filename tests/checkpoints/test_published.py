from __future__ import annotations

import re

import pytest

from cvt_dense.checkpoints.families import FAMILIES, find_variant
from cvt_dense.checkpoints.files import read
from cvt_dense.checkpoints.published import PUBLISHED, SHIPPED, Published, find_published

EVERY = pytest.mark.parametrize('published', PUBLISHED.values(), ids=lambda published: published.name)
OF_CVT, OF_CMT = (
    pytest.mark.parametrize(
        'published',
        [published for published in PUBLISHED.values() if published.arch.startswith(family)],
        ids=lambda published: published.name,
    )
    for family in ('cvt', 'cmt')
)


def test_every_known_variant_is_published() -> None:
    known = {variant for family in FAMILIES.values() for variant in family.variants}
    assert {published.arch for published in PUBLISHED.values()} == known


@pytest.mark.parametrize('attribute', ['name', 'filename'])
def test_no_two_checkpoints_share_a_name(attribute: str) -> None:
    assert len({getattr(published, attribute) for published in PUBLISHED.values()}) == len(PUBLISHED)


def test_each_checkpoint_is_in_one_place_of_its_own() -> None:
    assert len({published.repo or published.url for published in PUBLISHED.values()}) == len(PUBLISHED)
    assert all((published.repo is None) != (published.url is None) for published in PUBLISHED.values())


def test_no_two_checkpoints_of_a_variant_share_a_tag() -> None:
    assert len({(published.arch, published.timm_tag) for published in PUBLISHED.values()}) == len(PUBLISHED)


@OF_CMT
def test_a_checkpoint_of_cmt_is_for_images_of_its_variants_size(published: Published) -> None:
    _, arch = find_variant(published.arch)
    assert published.resolution == arch.pretrain_size
    name, by_fastmim = f'{published.arch}-{arch.pretrain_size}x{arch.pretrain_size}', 'fastmim' in published.filename
    assert published.name == (f'{name}-fastmim-in1k' if by_fastmim else f'{name}-in1k')
    assert published.timm_tag == ('huawei_fastmim_in1k' if by_fastmim else 'huawei_in1k')
    assert published.url.endswith(f'/{published.filename}')


@OF_CVT
def test_the_names_of_a_checkpoint_say_what_it_is(published: Published) -> None:
    side, pretrained = published.resolution, published.data.startswith('ImageNet-22k')
    assert published.data == ('ImageNet-22k, ImageNet-1k' if pretrained else 'ImageNet-1k')
    data = '22k' if pretrained else '1k'
    assert published.name == f'{published.arch}-{side}x{side}-in{data}'
    assert published.filename.lower() == f'{published.arch}-{side}x{side}-in-{data}.pth'
    fine_tuned = (f'-{side}' if side != 224 else '') + ('-22k' if pretrained else '')
    assert published.repo == f'microsoft/{published.arch}{fine_tuned}'
    assert re.fullmatch(r'msft_in22k_ft_in1k_384' if pretrained else r'msft_in1k(_384)?', published.timm_tag)
    assert published.timm_tag.endswith('_384') == (side == 384)


@EVERY
def test_a_checkpoint_is_found_by_our_name_and_the_authors(published: Published) -> None:
    assert find_published(published.name) is published
    assert find_published(published.filename) is published


@pytest.mark.parametrize('name', ['', 'cvt-13', 'CVT-13-224x224-IN1K', 'cvt-13-224x224-in1k.pth', *SHIPPED])
def test_nothing_is_found_by_other_names(name: str) -> None:
    assert find_published(name) is None


@pytest.mark.parametrize('name', SHIPPED)
def test_what_comes_with_the_package_is_there_and_readable(name: str) -> None:
    assert read(SHIPPED[name])
