"""Exported models that are a few operators, so that what they give can be told by looking at the image."""

from __future__ import annotations

from pathlib import Path

import onnx

from cvt_dense.apis.metadata import KEY, Metadata

#: Two objects, in pixels of the input; the masks are where the first channel is bright, and where it is not.
DETECTOR = """
<ir_version: 10, opset_import: ["": 20]>
detector (float[1, 3, H, W] images)
    => (float[n, 4] boxes, float[n] scores, int64[n] labels, bool[n, H, W] masks) {
    boxes = Constant<value = float[2, 4] {8, 16, 40, 64, 0, 0, 16, 16}>()
    scores = Constant<value = float[2] {0.9, 0.2}>()
    labels = Constant<value = int64[2] {1, 0}>()
    zero = Constant<value_int = 0>()
    limit = Constant<value_float = 127.0>()
    channel = Gather<axis = 1>(images, zero)
    bright = Greater(channel, limit)
    dark = Not(bright)
    masks = Concat<axis = 0>(bright, dark)
}
"""
#: A pixel's class is its brightest channel.
SEGMENTOR = """
<ir_version: 10, opset_import: ["": 20]>
segmentor (float[N, 3, H, W] images) => (float[N, 3, H, W] logits) { logits = Identity(images) }
"""


def write(text: str, path: Path, meta: Metadata | None) -> Path:
    """Write a model as an ``.onnx`` or, through OpenVINO, an ``.xml`` file."""
    model = onnx.parser.parse_model(text)
    if path.suffix == '.onnx':
        if meta is not None:
            onnx.helper.set_model_props(model, {KEY: meta.to_json()})
        onnx.save(model, path)
        return path
    import openvino  # not needed for the other

    onnx.save(model, path.with_suffix('.part.onnx'))
    converted = openvino.convert_model(path.with_suffix('.part.onnx'))
    if meta is not None:
        converted.set_rt_info(meta.to_json(), [KEY])
    openvino.save_model(converted, path, compress_to_fp16=False)
    return path
