"""How a backbone gets to know the sizes of the images in a padded batch, without a line in anyone's config.

Toolkits give a backbone the batch alone. The sizes are in the data samples, which the model around it is given. So
that model gets a hook as soon as such a backbone becomes a part of it, and the hook writes the sizes on the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..models.tokens import Size

_ATTRIBUTE = 'image_sizes'  # of a batch


def announced_sizes(x: Any) -> list[Size] | None:
    """The sizes of the images in a batch, ``(height, width)`` each, if the model around the backbone was told them.

    Args:
        x: The batch, or a crop of it, as of sliding windows: a view with the same strides.

    Returns:
        None if nothing is known, or if all images fill the batch.
    """
    if not isinstance(x, torch.Tensor):  # a trace of torch.fx
        return None
    sizes = getattr(x, _ATTRIBUTE, None)
    if sizes is not None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return sizes
    batch = x._base
    sizes = getattr(batch, _ATTRIBUTE, None)
    if sizes is None or x.ndim != 4 or x.stride() != batch.stride() or x.shape[:2] != batch.shape[:2]:
        return None
    top, left = divmod(x.storage_offset() - batch.storage_offset(), x.stride(2))
    left //= x.stride(3)
    return [(min(max(height - top, 1), x.shape[2]), min(max(width - left, 1), x.shape[3])) for height, width in sizes]


def announce_sizes(inputs: Any, data_samples: Any, is_tested: bool) -> None:
    """Write on a batch what its data samples say of the sizes of its images.

    Args:
        inputs: The batch ``(N, C, H, W)``, or batches by name, as semi-supervised detectors have them.
        data_samples: A sample for each image, by the same names; anything else says nothing.
        is_tested: Whether what is predicted is asked for, and not the loss, see :func:`_image_size`.
    """
    if isinstance(inputs, Mapping) and isinstance(data_samples, Mapping):
        for name in inputs.keys() & data_samples.keys():
            announce_sizes(inputs[name], data_samples[name], is_tested)
        return
    if not isinstance(inputs, torch.Tensor) or inputs.ndim != 4 or not isinstance(data_samples, (list, tuple)):
        return
    canvas = (inputs.shape[2], inputs.shape[3])
    sizes = [_image_size(sample, is_tested) for sample in data_samples]
    if len(sizes) != len(inputs) or any(size is None for size in sizes):
        return
    sizes = [(min(height, canvas[0]), min(width, canvas[1])) for height, width in sizes]
    setattr(inputs, _ATTRIBUTE, None if all(size == canvas for size in sizes) else sizes)


def _image_size(sample: Any, is_tested: bool) -> Size | None:
    """What a data sample says of its image's size.

    ``img_shape`` says it, but for a detector's ``Pad`` and letterboxes, which count their border into it. When a
    detector is tested, its boxes are brought back to the image as it was read by ``scale_factor`` alone, so that
    ``ori_shape`` times it is where the image ends. In training, crops and mosaics may come between.
    """
    if not isinstance(sample, BaseDataElement):
        return None
    shape = sample.get('img_shape')
    if shape is None:
        return None
    height, width = int(shape[0]), int(shape[1])
    scale, original = sample.get('scale_factor'), sample.get('ori_shape')
    # A border at the left, of a flip afterwards or of images that are put into the middle, cannot be cut off.
    is_moved = sample.get('flip') or sample.get('border') is not None
    if is_tested and not is_moved and scale is not None and original is not None and _is_detection(sample):
        height = min(height, max(round(original[0] * float(scale[1])), 1))
        width = min(width, max(round(original[1] * float(scale[0])), 1))
    return height, width


def _is_detection(sample: BaseDataElement) -> bool:
    return any(kind.__name__ == 'DetDataSample' for kind in type(sample).__mro__)


def _announce_batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hook of a model, before ``forward(inputs, data_samples, mode)``."""
    inputs, data_samples = (
        args[index] if len(args) > index else kwargs.get(name) for index, name in enumerate(('inputs', 'data_samples'))
    )
    announce_sizes(inputs, data_samples, not model.training)


def _announce_prepared(preprocessor: nn.Module, args: tuple[Any, ...], prepared: Any) -> None:
    """Hook of a model's data preprocessor, for those who call the model's ``loss`` or ``predict`` by themselves."""
    if isinstance(prepared, Mapping):
        announce_sizes(prepared.get('inputs'), prepared.get('data_samples'), not preprocessor.training)


def _listen(module: nn.Module, name: str, part: nn.Module | None) -> None:
    """Hook of torch, whenever a module becomes a part of another one."""
    if not isinstance(module, BaseModel) or part is None or _announce_batch in module._forward_pre_hooks.values():
        return
    if any(getattr(inner, 'takes_announced_sizes', False) for inner in part.modules()):
        module.register_forward_pre_hook(_announce_batch, with_kwargs=True)
        module.data_preprocessor.register_forward_hook(_announce_prepared)


register_module_module_registration_hook(_listen)
