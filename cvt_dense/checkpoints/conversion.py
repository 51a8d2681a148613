"""What tools that write weights in another format share: which tensors it has, the files, and a look at the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..models.trunk import Trunk
from .families import Family
from .formats import StateDict

#: What timm's models call the settings of a trunk.
TIMM_SETTINGS = {'in_channels': 'in_chans', 'pretrain_size': 'img_size'}
#: How far outputs may differ, as a part of their largest value: another implementation, and another order of sums.
TOLERANCE = 1e-4
_IMAGE_SIZE = (65, 98)  # odd, and with maps of different sides: a transposed weight would show


def kept_for(target: str, family: Family, tensors: StateDict) -> StateDict:
    """The tensors, under the trunk's names, that models of a format have.

    Output norms and the embedding of a map beyond the last stage are a detector's own.
    """
    if target == 'official':
        return tensors
    return {
        key: tensor for key, tensor in tensors.items() if family.stage_of(key) is not None or key.startswith(family.top)
    }


def write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict, in the format that the file's suffix says.

    Args:
        tensors: The state dict.
        path: ``.safetensors``, or what torch writes.
        metadata: For the header of a ``.safetensors`` file.
    """
    if path.suffix == '.safetensors':
        save_file({name: t.contiguous() for name, t in tensors.items()}, path, {'format': 'pt', **(metadata or {})})
    else:
        torch.save(dict(tensors), path)


def random_image(channels: int) -> Tensor:
    """An image, ``(1, channels, H, W)``, the same one each time."""
    return torch.randn(1, channels, *_IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


def last_map(trunk: Trunk, image: Tensor) -> Tensor:
    """The last map that a trunk makes of an image."""
    _, outputs = trunk.compute(image, None)
    return outputs[-1].maps[0]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """How far two maps are apart, as a part of the second one's largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
