"""What RoI heads look at: a small map for each box, from the level of the feature pyramid that its size asks for."""

from __future__ import annotations

import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import nn
from torchvision.ops import roi_align

from .support import check_methods, refuse


class Regions(nn.Module):
    """mmdet's ``SingleRoIExtractor`` in operators that ONNX has.

    Args:
        extractor: The config's.
        setting: Where the config has it.

    Raises:
        UserError: If it is of another kind, or does not average.
    """

    def __init__(self, extractor: nn.Module, setting: str) -> None:
        super().__init__()
        check_methods(extractor, SingleRoIExtractor, 'forward', 'map_roi_levels', setting=setting)
        for layer in extractor.roi_layers:
            if type(layer) is not RoIAlign:
                refuse(f'{setting}.roi_layer.type={type(layer).__name__!r}', "'RoIAlign' is")
            if layer.pool_mode != 'avg':
                refuse(f'{setting}.roi_layer.pool_mode={layer.pool_mode!r}', "'avg' is")
        self.layers = [
            (tuple(layer.output_size), layer.spatial_scale, max(layer.sampling_ratio, 0), layer.aligned)
            for layer in extractor.roi_layers
        ]
        self.finest_scale = extractor.finest_scale

    def forward(self, maps: tuple[torch.Tensor, ...], boxes: torch.Tensor) -> torch.Tensor:
        """``(n, C, *output_size)`` of ``(n, 4)`` boxes."""
        maps = maps[: len(self.layers)]
        boxes = torch.cat((boxes.new_zeros(boxes.shape[0], 1), boxes), dim=1)  # all of the first image
        if len(maps) == 1:
            return roi_align(maps[0], boxes, *self.layers[0])
        levels = self._levels(boxes[:, 1:], len(maps))
        places = [(levels == level).nonzero()[:, 0] for level in range(len(maps))]
        pooled = torch.cat([roi_align(x, boxes[at], *layer) for x, at, layer in zip(maps, places, self.layers)])
        empty = pooled.new_zeros(boxes.shape[0], *pooled.shape[1:])
        return empty.index_put((torch.cat(places),), pooled)

    def _levels(self, boxes: torch.Tensor, count: int) -> torch.Tensor:
        """The level of each box; one higher for each doubling of its scale, without the rounding of a logarithm."""
        scales = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt() / self.finest_scale + 1e-6
        steps = torch.tensor([2.0**level for level in range(1, count)], device=boxes.device)
        return (scales[:, None] >= steps).sum(1)
