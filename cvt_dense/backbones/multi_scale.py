"""What makes a trunk a multi-scale backbone for mmdetection, mmsegmentation and their kin, whatever its family."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..checkpoints import load_pretrained
from ..models.arch import StagedArch
from ..models.canvas import ImageSizes, convolved_size, lay_out
from ..models.embed import EMBED_NORM_EPS, ConvEmbed
from ..models.norms import keeps_statistics
from ..models.settings import boolean, is_integer, is_sequence, shown
from ..models.tokens import Size, tokens_to_map
from ..registry import type_name
from .outputs import fresh, tied
from .weights import InitCfg, check_init_cfg, read_init_cfg

torch.fx.wrap('tied')  # whether gradients are recorded is asked when a trace of torch.fx runs, not when it is made


class Maps(NamedTuple):
    """What a backbone returns.

    Attributes:
        channels: Of each map.
        strides: Of each map, relative to the image.
        most: How many maps it could return.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    most: int


def maps_of(arch: StagedArch, out_indices: Sequence[int]) -> Maps:
    """What a backbone of an architecture returns.

    Raises:
        ValueError: If ``out_indices`` is wrong; the message says how.
    """
    channels, strides = (*arch.embed_dims, arch.embed_dims[-1]), (*arch.strides, 2 * arch.strides[-1])
    indices = _check_out_indices(out_indices, arch.num_stages)
    return Maps(tuple(channels[i] for i in indices), tuple(strides[i] for i in indices), len(channels))


class Outputs(NamedTuple):
    """Settings of a backbone that do not depend on its family, checked.

    Attributes:
        indices: Maps that are returned.
        num_stages: Stages that are built.
        frozen_stages: The last stage that is frozen.
    """

    indices: tuple[int, ...]
    num_stages: int
    frozen_stages: int


def check_outputs(arch: StagedArch, out_indices: Sequence[int], frozen_stages: int, init_cfg: InitCfg) -> Outputs:
    """Check the settings that what is built depends on.

    Raises:
        ValueError: If one is wrong; the message says which.
    """
    indices = _check_out_indices(out_indices, arch.num_stages)
    last = min(indices[-1], arch.num_stages - 1)
    if not is_integer(frozen_stages) or not -1 <= frozen_stages <= last:
        raise ValueError(f'frozen_stages must lie between -1 (none) and {last}, got {shown(frozen_stages)}')
    check_init_cfg(init_cfg)
    return Outputs(indices, last + 1, int(frozen_stages))


class MultiScale:
    """A trunk's maps as a backbone returns them; comes before the trunk and mmengine's ``BaseModule`` among the bases.

    Attributes:
        out_channels (tuple[int, ...]): Channels of the returned maps.
        out_strides (tuple[int, ...]): Their strides relative to the image.
        tells_of_random_start (bool): Whether the first step of training looks for what stays random for ever, see
            :mod:`cvt_dense.backbones.random_start`. False after it, or where a run has said so before.
    """

    tells_of_random_start = True

    def add_outputs(
        self,
        outputs: Outputs,
        out_norm: bool,
        norm_eval: bool,
        ignore_padding: bool,
        init_cfg: InitCfg,
    ) -> None:
        """Add what a backbone has on top of its trunk, and freeze what is to be frozen.

        Args:
            outputs: As :func:`check_outputs` returned them.
            out_norm: Whether each returned map of a stage has a fresh LayerNorm, ``norm{i}``.
            norm_eval: Whether BatchNorm keeps its statistics.
            ignore_padding: Whether sizes that the model around the backbone was told are taken.
            init_cfg: As ``BaseModule`` takes it.

        Raises:
            ValueError: If a setting is wrong; the message says which.
        """
        self.out_indices = outputs.indices
        self.frozen_stages = outputs.frozen_stages
        self.norm_eval = boolean(norm_eval, 'norm_eval')
        self.takes_announced_sizes = boolean(ignore_padding, 'ignore_padding')
        self.init_cfg = copy.deepcopy(init_cfg)
        self.out_channels, self.out_strides, _ = maps_of(self.arch, outputs.indices)
        with_norm = boolean(out_norm, 'out_norm')
        for index, channels in zip(outputs.indices, self.out_channels):
            if index < self.arch.num_stages:
                norm = nn.LayerNorm(channels, eps=EMBED_NORM_EPS) if with_norm else nn.Identity()
                self.add_module(f'norm{index}', norm)
            else:
                self.downsample = ConvEmbed(channels, channels, kernel_size=3, stride=2, padding=1)
        self._freeze()

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; a pre-trained checkpoint covers the whole trunk or is refused.

        As in all of mmengine, a second call changes nothing. Each checkpoint, or that there is none, is a line in the
        log.

        Raises:
            CheckpointError: If the checkpoint is not found, cannot be read or does not fit, or ``init_cfg`` names none
                or has unknown keys; the message says why.
        """
        given = self.init_cfg
        initialization = read_init_cfg(given)
        is_first, is_standalone = not self.is_init, not hasattr(self, '_params_init_info')
        # BaseModule would load a pre-trained one with strict=False and only warn of what is missing.
        self.init_cfg = initialization.others
        try:
            super().init_weights()
        finally:
            self.init_cfg = given
        if not is_first:
            return
        for source in initialization.pretrained:
            report = load_pretrained(self, source.checkpoint, source.prefix)
            print_log(f'{self.family}: {report}', logger='current')
        if is_standalone and not initialization.pretrained:
            made = ' or as '.join(['random', *(f'{type_name(entry)} made them' for entry in initialization.others)])
            count = len(list(self.parameters()))
            print_log(f'{self.family}: {count} tensors are {made}: init_cfg names no checkpoint', logger='current')

    def _dump_init_info(self) -> None:
        """Leave out mmengine's report of a model that is initialised by itself: four lines for each parameter."""

    def forward(self, x: torch.Tensor, image_sizes: ImageSizes | None = None) -> tuple[torch.Tensor, ...]:
        """Compute the feature maps of a batch of images.

        Args:
            x: ``(N, in_channels, H, W)`` floating point, of any size from the family's smallest on, odd ones too.
            image_sizes: ``(height, width)`` of each image in pixels, where the batch is padded at the right and at the
                bottom. None for what the model around the backbone was told (see ``ignore_padding``), or else for
                images that fill the batch.

        Returns:
            One map per entry of ``out_indices``: ``(N, C_i, H_i, W_i)``, whose sizes follow from the image's as the
            trunk's ``forward`` says. In its own area, of the size that follows from its own height and width, a map is
            what the image gives alone; it is zero elsewhere. Maps are contiguous, whatever the input's memory format:
            mmcv's RoIAlign silently misreads any other layout. They are copies, which may be changed in place.

        Raises:
            TypeError: If the input is not a tensor.
            ValueError: If the input has another shape, is too small, or does not hold floats; or if the sizes are not
                those of images in it.
        """
        if self.training and self.tells_of_random_start and not torch.compiler.is_compiling():
            self.tells_of_random_start = False
            random_start.tell_of_kept_parts(self)
        if image_sizes is None and self.takes_announced_sizes:
            image_sizes = padding.announced_sizes(x)
        images, computed = self.compute(x, image_sizes)
        maps = [output.maps for output in computed]
        if images.places is None:
            return tuple(fresh(output) for output in self._outputs([parts[0] for parts in maps]))
        outputs_of_parts = [self._outputs(list(maps_of_part)) for maps_of_part in zip(*maps)]
        return tuple(
            lay_out([outputs[place] for outputs in outputs_of_parts], images.places, size)
            for place, size in enumerate(self.output_sizes(x))
        )

    def kept_from_random_start(self) -> random_start.Kept | None:
        """What stays as it was made with these settings, which is wrong unless weights are loaded; None if nothing."""
        return random_start.kept_parts(self)

    def output_sizes(self, x: torch.Tensor) -> list[Size]:
        """``(H_i, W_i)`` of each map that is returned of ``(N, C, H, W)`` images."""
        sizes = self.map_sizes(x)
        if hasattr(self, 'downsample'):
            sizes.append(convolved_size(sizes[-1], self.downsample.proj))
        return [sizes[index] for index in self.out_indices]

    def train(self, mode: bool = True) -> MultiScale:
        """Switch to training (or eval) mode; what is frozen stays in eval mode."""
        super().train(mode)
        self._freeze()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Where a parameter is, for layer-wise learning rates (see :mod:`cvt_dense.engine.layer_decay`).

        A layer is what each stage has before its blocks, or in common for them, and each block. The output norms are
        fresh, like heads.

        Args:
            param_name: Its name in the model that the backbone is a part of.
            prefix: What the backbone's own parameters begin with there.

        Returns:
            The layer, counted from 0, and the number of layers; whatever is not in the trunk is in the last.
        """
        layers = [len(stage.blocks) + 1 for stage in self.stages]
        place = self.place_of(param_name.removeprefix(prefix)) if param_name.startswith(prefix) else None
        if place is None:
            return sum(layers), sum(layers) + 1
        return sum(layers[: place.stage]) + (0 if place.block is None else 1 + place.block), sum(layers) + 1

    def _outputs(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The maps that are returned, in any memory layout, of the raw ones of all stages that were built."""
        outputs = []
        for index in self.out_indices:
            if index < len(maps):
                norm = getattr(self, f'norm{index}')
                outputs.append(norm(maps[index].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
            else:
                outputs.append(tokens_to_map(*self.downsample(maps[-1])))
        # By index: tied() is one node in a graph of torch.fx, which does not know how many it returns.
        joined = tied(outputs)
        return [joined[i] for i in range(len(outputs))]

    def _freeze(self) -> None:
        for name, module in self.named_modules():
            if self._is_frozen(name) or (self.norm_eval and keeps_statistics(module)):
                module.eval()
        for name, parameter in self.named_parameters():
            if self._is_frozen(name):
                parameter.requires_grad_(False)

    def _is_frozen(self, name: str) -> bool:
        place = self.place_of(name)
        return place is not None and place.stage <= self.frozen_stages


def _check_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    indices = list(out_indices) if is_sequence(out_indices) else []
    are_maps = all(is_integer(index) and 0 <= index <= num_stages for index in indices)
    if not indices or not are_maps or indices != sorted(set(indices)):
        raise ValueError(
            f'out_indices must be a list of stages in rising order, from 0 to {num_stages - 1}, or to {num_stages} '
            f'for one more map, at half the resolution of the last stage, got {shown(out_indices)}'
        )
    return tuple(int(index) for index in indices)


# At the end: who imports mmengine imports the registered backbones (cvt_dense/__init__.py), which need what is above.
from mmengine.logging import print_log  # noqa: E402

from . import padding, random_start  # noqa: E402
