"""Whole detectors as ONNX files of standard operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.models.detectors.two_stage import TwoStageDetector
from torch import nn
from torch.export import Dim

from ...errors import UserError
from .. import export as exporting
from ..metadata import KEY, Metadata
from .anchors import OneStage
from .check import Exported, check
from .detections import Detections
from .two_stage import TwoStage

OUTPUTS = ('boxes', 'scores', 'labels', 'masks')
#: Height and width of the example that is followed through a detector.
_EXAMPLE_SIZE = (161, 225)
_THRESHOLD = 'score_thr'


def as_function(model: nn.Module) -> nn.Module:
    """A detector as a function of one image, ``(1, C, H, W)``, that can be exported.

    Raises:
        UserError: If it is of another kind, or a part or setting is not known.
    """
    predict = getattr(type(model), 'predict', None)
    if predict is TwoStageDetector.predict:
        return TwoStage(model).eval()
    if predict is SingleStageDetector.predict:
        return OneStage(model).eval()
    raise UserError(
        f'a whole {type(model).__name__} is not exported: take --part neck or --part backbone, and run the rest of it '
        'in PyTorch'
    )


def export_detector(model: nn.Module, path: Path, metadata: Metadata | None = None, opset: int | None = None) -> None:
    """Write a whole detector as an ``.onnx`` file, compared with mmdet's prediction before it is kept.

    Args:
        model: mmdet's, in eval mode, on the CPU.
        path: Replaced, if the new file has turned out right; as it was otherwise.
        metadata: What the file is to say of itself.
        opset: As :func:`~cvt_dense.apis.export.export` takes it.

    Raises:
        UserError: If the detector is of an unknown kind, packages are missing, it cannot be exported, or what was
            exported finds something else.
    """
    _, _, packages = exporting.FORMATS['.onnx']
    formats = {'.onnx': (_write, _read, packages)}
    exporting.export(as_function(model), path, metadata, opset, formats, lambda _, exported: check(model, exported))


def _write(function: nn.Module, path: Path, metadata: Metadata | None, opset: int | None) -> None:
    example = torch.zeros(1, 3, *_EXAMPLE_SIZE)
    # torch.export treats sides of one specially, and follows how they round down: the smallest map has to be larger.
    least = max(exporting.MIN_SIZE, function.largest_stride * 5 // 4)
    shapes = ({2: Dim('height', min=least), 3: Dim('width', min=least)},)
    count = len(function(example))
    program = torch.onnx.export(
        torch.export.export(function, (example,), dynamic_shapes=shapes, strict=False),
        dynamo=True,
        opset_version=opset or exporting.OPSET,  # ONNX Runtime has no RoiAlign of opset 22
        input_names=['images'],
        output_names=list(OUTPUTS[:count]),
        dynamic_shapes=shapes,
        verbose=False,
    )
    if metadata is not None:
        program.model.metadata_props[KEY] = metadata.to_json()
    program.save(path)


def _read(path: Path) -> Exported:
    import onnx
    import onnxruntime

    def run(image: torch.Tensor, threshold: float | None) -> Detections:
        variant = path
        if threshold is not None:
            # Beside the original, whose second file it may name.
            variant = path.with_stem('threshold')
            content = onnx.load(path, load_external_data=False)
            (tensor,) = (tensor for tensor in content.graph.initializer if tensor.name == _THRESHOLD)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(threshold), _THRESHOLD))
            onnx.save(content, variant)
        session = onnxruntime.InferenceSession(variant, providers=['CPUExecutionProvider'])
        if variant != path:
            variant.unlink()
        return Detections.of([torch.from_numpy(x) for x in session.run(None, {'images': image.numpy()})])

    return run
