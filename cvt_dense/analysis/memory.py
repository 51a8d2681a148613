"""An estimate of the memory that a training step of a config takes. Nothing is computed.

The model is built and run on PyTorch's fake tensors, which have shapes and no values, and the tensors that live at one
time are counted, forward and backward, attention's included.

It is too low. Compared with the growth of a process over two real steps on a CPU, in float32 unless said, the estimate
was 0.89 of the measurement for UperNet with CvT-13 (0.91 in bfloat16), 0.80 for Mask R-CNN with CvT-13, 0.68 for
RetinaNet, whose loss makes many copies, and for the demo's small models 0.6 to 0.7, or 0.15 GiB less. On a GPU it was
not compared.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..datasets.paths import datasets_in
from ..registry import type_name

Size = tuple[int, int]  # height, width in pixels

#: Tensors that an optimizer keeps for each parameter; two are assumed for those that are not listed.
_OPTIMIZER_STATES = {'SGD': 1, 'RMSprop': 1, 'Lion': 1}


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory that a training step takes, in bytes.

    Attributes:
        parameters: Parameters and buffers.
        gradients: One for each parameter that is trained.
        optimizer: What the optimizer keeps of each of them.
        passes: The most that activations and gradients take together in a forward and a backward pass.
        size: Of the images, in pixels.
        batch_size: Images in a batch.
        left_out: Names of the model's parts whose activations are not counted.
    """

    parameters: int
    gradients: int
    optimizer: int
    passes: int
    size: Size
    batch_size: int
    left_out: tuple[str, ...]

    @property
    def total(self) -> int:
        """The most at one time: in the passes, or in the optimizer's step with a scratch tensor for each gradient."""
        return self.parameters + self.optimizer + max(self.passes, 2 * self.gradients)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside, each as long as it lives.

    Attributes:
        peak: The most at one time.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def estimate_memory(cfg: Config, model: nn.Module) -> MemoryEstimate | None:
    """Estimate what a training step of a config takes on one device; None if the config gives no size of images.

    Not counted are the matching of predictions and ground truth, libraries' own scratch space, what PyTorch's allocator
    keeps for later, and heads that cannot run without values; the estimate names those.

    Args:
        cfg: Config of a run of mmdet or mmseg.
        model: The one that it describes, on the meta device; it is on fake tensors afterwards. (Built there and not on
            fake tensors, which some heads copy: copies of fake tensors break the process later on.)
    """
    size = image_size(cfg)
    if size is None:
        return None
    batch_size = cfg.train_dataloader.batch_size
    is_mixed = type_name(cfg.optim_wrapper) in ('AmpOptimWrapper', 'BFloat16OptimWrapper')
    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device='cpu')
        tensors = [*model.parameters(), *model.buffers()]
        with _LiveBytes(tensors) as live, torch.autocast('cpu', torch.bfloat16, enabled=is_mixed):
            left_out = _step(model, torch.zeros(batch_size, 3, *size), cfg.default_scope)
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    states = _OPTIMIZER_STATES.get(type_name(cfg.optim_wrapper.optimizer), 2)
    return MemoryEstimate(
        parameters=sum(tensor.nbytes for tensor in tensors),
        gradients=gradients,
        optimizer=states * gradients,
        passes=live.peak,
        size=size,
        batch_size=batch_size,
        left_out=left_out,
    )


def _step(model: nn.Module, images: Tensor, scope: str) -> tuple[str, ...]:
    """Run a model forward and backward as training does; returns the names of the parts that were not run."""
    outputs, left_out = (_run_segmentor if scope == 'mmseg' else _run_detector)(model, images)
    sum(output.float().sum() for output in tree_leaves(outputs) if output.requires_grad).backward()
    return tuple(left_out)


def _run_segmentor(model: nn.Module, images: Tensor) -> tuple[Any, list[str]]:
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    features = model.extract_feat(images)
    outputs, left_out = [features], []
    labels = torch.zeros(len(images), *images.shape[-2:], dtype=torch.long)
    for name in ('decode_head', 'auxiliary_head'):
        head = getattr(model, name, None)
        for part in head if isinstance(head, nn.ModuleList) else [head]:
            if isinstance(part, BaseDecodeHead):
                logits = F.interpolate(part(features), images.shape[-2:], mode='bilinear')
                outputs.append(F.cross_entropy(logits.float(), labels, reduction='none'))
            elif part is not None:
                left_out.append(name)
    return outputs, left_out


def _run_detector(model: nn.Module, images: Tensor) -> tuple[Any, list[str]]:
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.roi_heads.base_roi_head import BaseRoIHead

    features = model.extract_feat(images)
    outputs, left_out = [features], []
    for name, part in model.named_children():
        if isinstance(part, BaseDenseHead):
            for output in tree_leaves(part(features)):  # maps of predictions, with a stand-in for their loss
                outputs.append(F.binary_cross_entropy_with_logits(output, torch.zeros_like(output), reduction='none'))
        elif isinstance(part, BaseRoIHead):
            outputs.extend(_run_roi_head(part, len(images)))
        elif name not in ('data_preprocessor', 'backbone', 'neck'):
            left_out.append(name)
    return outputs, left_out


def _run_roi_head(roi_head: nn.Module, batch_size: int) -> Iterator[Any]:
    """Run the heads of regions on as many regions as the sampler draws at most."""
    rcnn = roi_head.train_cfg
    for stage, settings in enumerate(rcnn if isinstance(rcnn, (list, tuple)) else [rcnn]):
        count = batch_size * settings.sampler.num
        counts = {'bbox': count, 'mask': int(count * settings.sampler.pos_fraction)}
        for kind in ('bbox', 'mask'):
            if not getattr(roi_head, f'with_{kind}'):
                continue
            head, extractor = (
                part[stage] if isinstance(part, nn.ModuleList) else part
                for part in (getattr(roi_head, f'{kind}_head'), getattr(roi_head, f'{kind}_roi_extractor'))
            )
            size = extractor.roi_layers[0].output_size
            yield head(torch.zeros(counts[kind], extractor.out_channels, *size, requires_grad=True))


def image_size(cfg: Config) -> Size | None:
    """The largest size of images in training, ``(H, W)`` after padding; None if no pipeline of the config sets it.

    A detector's images are assumed to be as large as their scale allows, and wider than high.
    """
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if preprocessor.get('size'):
        return tuple(preprocessor['size'])
    divisor = preprocessor.get('pad_size_divisor', 1)
    for split in ('train', 'val'):
        loader = cfg.get(f'{split}_dataloader')
        for dataset in datasets_in(loader.dataset if loader else None):
            size = _size_after(dataset.get('pipeline') or [], None)
            if size:
                return tuple(-(-side // divisor) * divisor for side in size)
    return None


def _size_after(pipeline: Sequence[ConfigDict], size: Size | None) -> Size | None:
    """The largest size that images of a size, None if unknown, can have after a pipeline."""
    for step in pipeline:
        scales = step.get('scales') or [step.get('scale')]
        crop = step.get('crop_size')
        if 'transforms' in step:
            branches = [branch if isinstance(branch, (list, tuple)) else [branch] for branch in step['transforms']]
            size = max((_size_after(branch, size) for branch in branches), key=lambda s: s[0] * s[1] if s else 0)
        elif crop is not None and 'relative' not in step.get('crop_type', 'absolute'):
            size = (crop, crop) if isinstance(crop, int) else tuple(crop)
        elif all(isinstance(scale, (list, tuple)) for scale in scales):
            sides = max(chain.from_iterable(_as_pairs(scale) for scale in scales), key=lambda s: s[0] * s[1])
            ratio = max(step.get('ratio_range') or [1])
            size = (int(sides[1] * ratio), int(sides[0] * ratio))
    return size


def _as_pairs(scale: Sequence[Any]) -> list[Sequence[int]]:
    """A scale ``(W, H)`` as a list of one; the ends of a range of scales as a list of two."""
    return list(scale) if isinstance(scale[0], (list, tuple)) else [scale]
