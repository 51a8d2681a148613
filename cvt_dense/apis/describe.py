"""What a config says of a model that is exported, for the file that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from torch import nn

from ..errors import UserError
from ..registry import type_name
from ..visualization.painter import SCORE_THRESHOLD
from .evaluation import category_ids, inference_steps, metainfo_of, tested_dataset
from .export import MIN_SIZE
from .metadata import INTERPOLATIONS, Metadata, Resize

#: Settings of LoadImageFromFile, and values with which it reads an image as prediction does.
_LOADING = {
    'to_float32': (False,),
    'color_type': ('color',),
    'imdecode_backend': ('cv2',),
    'ignore_empty': (True, False),
    'backend_args': (None,),
}


class _NotExpressible(Exception):
    """The preparation of images is one that a file cannot say; the message says why."""


def describe(cfg: Config, model: nn.Module, part: str) -> Metadata:
    """What an exported file is to say of itself.

    Args:
        cfg: Config of mmdet or mmseg.
        model: What was built from it.
        part: ``backbone`` or ``neck`` for a file that gives feature maps; anything else is the whole model.

    """
    preprocessor = cfg.model.get('data_preprocessor') or {}
    swaps = bool(preprocessor.get('bgr_to_rgb')) != bool(preprocessor.get('rgb_to_bgr'))
    prepared: dict[str, Any] = dict(channel_order='RGB' if swaps else 'BGR', min_size=MIN_SIZE)
    meta: Mapping[str, Any] = {}
    try:
        dataset = tested_dataset(cfg)
        if part not in ('backbone', 'neck'):
            meta = metainfo_of(model, dataset, cfg.default_scope)
        prepared['resize'] = _resize_of(inference_steps(dataset))
    except (UserError, _NotExpressible) as error:
        prepared['cannot_prepare'] = str(error)
    if part in ('backbone', 'neck'):
        return Metadata('features', **prepared)
    detects = cfg.default_scope == 'mmdet'
    classes = tuple(meta.get('classes') or ())
    palette = meta.get('palette')
    prepared.update(
        classes=classes,
        category_ids=tuple(category_ids(classes, detects)),
        palette=None if palette is None or isinstance(palette, str) else [[int(x) for x in color] for color in palette],
    )
    if detects:
        return Metadata('detection', score_threshold=SCORE_THRESHOLD, **prepared)
    if cfg.model.get('test_cfg', {}).get('mode') == 'slide':
        prepared['cannot_prepare'] = "the config evaluates in crops that slide over the image (test_cfg.mode='slide')"
    head = model.decode_head
    threshold = float(head.threshold) if head.out_channels == 1 else None
    return Metadata('segmentation', align_corners=head.align_corners, binary_threshold=threshold, **prepared)


def _resize_of(steps: list[Mapping[str, Any]]) -> Resize | None:
    """How a test pipeline resizes images, None if it does not.

    Raises:
        _NotExpressible: If it does something else to them.
    """
    loading, *steps = steps
    for key, value in loading.items():
        if key != 'type' and value not in _LOADING.get(key, ()):
            raise _NotExpressible(f"the config's LoadImageFromFile has {key}={value}")
    if type_name(steps[-1] if steps else None).startswith('Pack'):
        steps = steps[:-1]
    if not steps:
        return None
    names = [type_name(step) for step in steps]
    if names != ['Resize']:
        raise _NotExpressible(f'the test pipeline has {" and ".join(n for n in names if n != "Resize")}')
    settings = {key: value for key, value in steps[0].items() if key not in ('type', 'clip_object_border')}
    backend, interpolation = settings.pop('backend', 'cv2'), settings.pop('interpolation', 'bilinear')
    unknown = settings.keys() - {'scale', 'scale_factor', 'keep_ratio'}
    if backend != 'cv2' or interpolation not in INTERPOLATIONS or unknown:
        raise _NotExpressible(f'the Resize of the test pipeline is not one by OpenCV: {dict(steps[0])}')
    scale, factor = settings.get('scale'), settings.get('scale_factor')
    return Resize(
        scale=None if scale is None else _pair(scale),
        factor=None if scale is not None else _pair(factor),
        keep_ratio=bool(settings.get('keep_ratio', False)),
        interpolation=interpolation,
    )


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
