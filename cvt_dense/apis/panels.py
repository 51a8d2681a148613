"""Draw what is inside of a model: what a point attends to in each block, and the maps of the stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..analysis.inspection import StageView, principal_components, to_pixels
from ..visualization.overlays import draw_heat, draw_point, fitted
from ..visualization.painter import enlarged, zoom_of
from .viewer import Inside, View

#: Pixels of the longer side of a panel, at most.
PANEL_SIDE = 480
#: Times the mean weight that are drawn brightest, unless a weight is larger: even weights are to look like that.
BRIGHT = 4

Looked = tuple[View, Inside]


class Panel(NamedTuple):
    """A picture, ``(h, w, 3)`` of uint8, BGR, and what it shows."""

    picture: np.ndarray
    title: str


def plain_picture(view: View) -> np.ndarray:
    """The picture without what was found in it, ``(h, w, 3)`` of uint8, BGR, enlarged if it is small."""
    return enlarged(view.image, zoom_of(view.image))


def circled(picture: np.ndarray, view: View, inside: Inside) -> np.ndarray:
    """Circle the point that was looked from, in a picture that begins with the one of a view, be it enlarged."""
    height, width = plain_picture(view).shape[:2]
    return draw_point(picture, view.place_of(inside.point, (width, height)))


def attention_panels(view: View, inside: Inside) -> list[Panel]:
    """What the point attends to in each block, the mean over its heads.

    Titles have the largest weight as a multiple of the mean of those seen, and that of a cls token if there is one.
    """
    panels = []
    for number, stage in enumerate(inside.stages):
        for block, row in enumerate(stage.attention):
            weights, cls_weight = row.weights.mean(0), float(row.cls_weights.mean())
            relative = weights * (weights > 0).sum() / weights.sum()
            largest = float(relative.max())
            heat = to_pixels(relative / max(largest, BRIGHT), row.lattice, view.prepared.shape[2:])
            cls = f', cls {100 * cls_weight:.2g} %' if cls_weight > 0 else ''
            title = f'stage {number}, block {block}: {largest:.2g}×{cls}'
            panels.append(Panel(_with_point(draw_heat(_small(view), heat.numpy()), view, inside), title))
    return panels


def map_panels(looked: Sequence[Looked]) -> list[Panel]:
    """The map of each stage: its first three principal components as red, green and blue.

    Args:
        looked: Pictures. Their components are taken together, so that like colours mean like features in all of them;
            the panels of a stage follow each other.
    """
    panels = []
    for number, stages in enumerate(zip(*(inside.stages for _, inside in looked), strict=True)):
        tokens = torch.cat([stage.features.flatten(1) for stage in stages], dim=1)
        places = [stage.features[0].numel() for stage in stages]
        parts = principal_components(tokens[:, None])[:, 0].split(places, dim=1)
        for (view, _), stage, part in zip(looked, stages, parts, strict=True):
            channels, height, width = stage.features.shape
            picture = 255 * _in_pixels(part.unflatten(1, (height, width)), view, stage).flip(0).permute(1, 2, 0)
            title = f'stage {number}: {channels} × {height}×{width}'
            panels.append(Panel(_resized(picture.round().byte().numpy(), view), title))
    return panels


def likeness_panels(source: Inside, looked: Sequence[Looked]) -> list[Panel]:
    """How like the features at a point are to those of all places in pictures, in each stage.

    That is the cosine of both, the mean over all places of the pictures taken off; what is below 0 is drawn as 0.

    Args:
        source: The point.
        looked: The pictures, whose panels of a stage follow each other.
    """
    panels = []
    for number, stage in enumerate(source.stages):
        row, column = stage.query
        mean = torch.cat([inside.stages[number].features.flatten(1) for _, inside in looked], dim=1).mean(1)
        token = (stage.features[:, row, column] - mean)[:, None, None]
        for view, inside in looked:
            other = inside.stages[number]
            cosine = torch.cosine_similarity(other.features - mean[:, None, None], token, dim=0)
            heat = _in_pixels(cosine.clamp_min(0), view, other)
            picture = draw_heat(_small(view), heat.numpy())
            picture = _with_point(picture, view, inside) if inside is source else picture
            panels.append(Panel(picture, f'stage {number}: up to {float(cosine.max()):.2f}'))
    return panels


def _in_pixels(x: Tensor, view: View, stage: StageView) -> Tensor:
    """Spread the map of a stage, ``(..., h, w)``, over what the backbone got."""
    return to_pixels(x, stage.lattice, view.prepared.shape[2:])


def _small(view: View) -> np.ndarray:
    return fitted(plain_picture(view), PANEL_SIDE)


def _resized(picture: np.ndarray, view: View) -> np.ndarray:
    height, width = _small(view).shape[:2]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)


def _with_point(picture: np.ndarray, view: View, inside: Inside) -> np.ndarray:
    return draw_point(picture, view.place_of(inside.point, picture.shape[1::-1]))
