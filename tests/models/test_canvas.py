from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cvt_dense.models.canvas import convolved_size, cut_images, in_order, lay_out


def test_images_of_one_size_are_together_and_go_back_to_their_places() -> None:
    x = torch.randn(5, 3, 20, 30)
    sizes = [(20, 30), (17, 18), (16, 30), (17, 18), (20, 30)]
    images = cut_images(x, sizes, least=16)
    assert [tuple(part.shape) for part in images.parts] == [(2, 3, 20, 30), (2, 3, 17, 18), (1, 3, 16, 30)]
    laid_out = lay_out(images.parts, images.places, (20, 30))
    assert laid_out.is_contiguous()
    for image, (height, width), original in zip(laid_out, sizes, x):
        assert torch.equal(image[:, :height, :width], original[:, :height, :width])
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
    numbers = in_order([part[:, 0, 0, 0] for part in images.parts], images.places)
    assert torch.equal(numbers, x[:, 0, 0, 0])


def test_what_is_laid_out_is_contiguous_also_if_a_map_has_one_pixel() -> None:
    one_pixel = torch.randn(1, 1, 1, 16).permute(0, 3, 1, 2)
    assert lay_out([one_pixel], [0], (2, 2)).is_contiguous()


@pytest.mark.parametrize('sizes', [None, [(20, 30)] * 2, torch.tensor([[20, 30], [20, 30]])])
def test_a_batch_without_padding_is_taken_as_it_is(sizes: Any) -> None:
    x = torch.randn(2, 3, 20, 30)
    images = cut_images(x, sizes, least=16)
    assert images.parts[0] is x
    assert images.places is None
    assert lay_out([x], images.places, (20, 30)) is x


def test_what_is_smaller_than_a_model_takes_is_filled_up_with_zeros() -> None:
    x = torch.ones(2, 3, 20, 30)
    images = cut_images(x, [(5, 30), (5, 30)], least=16)
    assert images.parts[0].shape == (2, 3, 16, 30)
    assert images.parts[0].sum() == 2 * 3 * 5 * 30


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ([(20, 30)], 'of each of the 2 images'),
        ([(20, 30)] * 3, 'of each of the 2 images'),
        ([20, 30], 'of each of the 2 images'),
        ([(20, 30, 3)] * 2, 'of each of the 2 images'),
        ([(20.0, 30.0)] * 2, 'of each of the 2 images'),
        ('ab', 'of each of the 2 images'),
        (7, 'of each of the 2 images'),
        (torch.tensor(7), 'of each of the 2 images'),
        ([(20, 31), (20, 30)], 'between 1x1 and the 20x30 pixels of the batch, got 20x31'),
        ([(0, 30), (20, 30)], 'got 0x30'),
    ],
)
def test_sizes_that_are_not_those_of_the_images_are_refused_in_one_line(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        cut_images(torch.zeros(2, 3, 20, 30), sizes, least=16)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('size', [(16, 17), (35, 20)])
def test_the_size_of_a_map_is_what_the_convolution_makes(size: tuple[int, int]) -> None:
    for conv in (nn.Conv2d(1, 1, 7, 4, 2), nn.Conv2d(1, 1, 3, 2, 1)):
        assert convolved_size(size, conv) == tuple(conv(torch.zeros(1, 1, *size)).shape[2:])
