"""What trunks share, whatever their family: images in, cut out of their padding; one feature map per stage out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from .arch import StagedArch
from .canvas import CutImages, ImageSizes, convolved_size, cut_images
from .images import check_images
from .stages import run_stages
from .tokens import Size

torch.fx.wrap('check_images')  # a trace of torch.fx is for images of any size, and has none to look at


class Place(NamedTuple):
    """Where a part of a trunk is.

    Attributes:
        stage: Counted from 0.
        block: Of the stage; None for what comes before its blocks, and for what they share.
    """

    stage: int
    block: int | None


class StageOutput(NamedTuple):
    """What a stage computed.

    Attributes:
        tokens: Of all maps, as laid out.
        maps: ``(n_i, C, H_i, W_i)`` of each part of the batch, views of them.
    """

    tokens: torch.Tensor
    maps: list[torch.Tensor]


class Trunk(nn.Module):
    """The stages of a backbone, parameters named as in the published weights.

    A family sets ``arch``, ``in_channels`` and ``num_stages``, and adds its stages.

    Attributes:
        family: Its name.
        arch: The variant's architecture.
        in_channels: Channels of the image.
        num_stages: How many of the variant's stages there are.
    """

    family: ClassVar[str]
    arch: StagedArch
    in_channels: int
    num_stages: int

    @property
    def stages(self) -> Sequence[Any]:
        """What :func:`~cvt_dense.models.stages.run_stages` takes.

        Each also has ``blocks``, a list of modules, and ``sampling()``, the convolutions that make its map smaller than
        the one before.
        """
        raise NotImplementedError

    @property
    def min_size(self) -> int:
        """Side of the smallest image, in pixels."""
        raise NotImplementedError

    @staticmethod
    def place_of(name: str) -> Place | None:
        """Where a parameter or module is, by its name in the trunk; None for what is not a part of a stage."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        raise NotImplementedError

    def compute(self, x: torch.Tensor, image_sizes: ImageSizes | None) -> tuple[CutImages, list[StageOutput]]:
        """Compute all stages, and leave what they give in parts, images of one size together.

        Args:
            x: Images, ``(N, in_channels, H, W)`` floating point, of any size from :attr:`min_size` on.
            image_sizes: ``(height, width)`` of each image in pixels, where the batch is padded at the right and at the
                bottom; None if there is no padding.

        Returns:
            The images as they were cut out of the batch, and what each stage made of them.

        Raises:
            TypeError: If the input is not a tensor.
            ValueError: If the input has another shape, is too small, or does not hold floats; or if the sizes are not
                those of images in it.
        """
        check_images(x, self.in_channels, self.min_size, self.family)
        images = cut_images(x, image_sizes, self.min_size)
        return images, [StageOutput(*output) for output in run_stages(self.stages, images.parts)]

    def map_sizes(self, x: torch.Tensor) -> list[Size]:
        """``(H_i, W_i)`` of each stage's map of ``(N, C, H, W)`` images that fill their canvas."""
        size = (x.shape[2], x.shape[3])
        sizes = []
        for stage in self.stages:
            for conv in stage.sampling():
                size = convolved_size(size, conv)
            sizes.append(size)
        return sizes
