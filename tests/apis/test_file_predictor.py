"""Prediction with exported files: the models are small enough to say what they have to give."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import documents
import numpy as np
import pytest
import small_files
import torch
from paths import ROOT
from torch.nn import functional as F

from cvt_dense.apis import FilePredictor, Skipped
from cvt_dense.apis.metadata import Metadata, Resize
from cvt_dense.errors import UserError
from cvt_dense.visualization.painter import Instances

SUFFIXES = ['.onnx', pytest.param('.xml', marks=pytest.mark.skipif(not find_spec('openvino'), reason='no OpenVINO'))]
HALF = Resize(factor=(0.5, 0.25))
DETECTOR = Metadata('detection', 'RGB', 8, HALF, None, ('cat', 'dog'), (17, 18), None, 0.3)
SEGMENTOR = Metadata('segmentation', 'RGB', 8, HALF, None, ('red', 'green', 'blue'), (0, 1, 2))


def picture(height: int = 256, width: int = 200) -> np.ndarray:
    """An image whose red channel is bright in its upper half."""
    image = np.random.default_rng(0).integers(0, 100, (height, width, 3), np.uint8)
    image[: height // 2, :, 2] += 150
    return image


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_objects_are_in_pixels_of_the_image(suffix: str, tmp_path: Path) -> None:
    predictor = FilePredictor(small_files.write(small_files.DETECTOR, tmp_path / f'model{suffix}', DETECTOR))
    cv2.imwrite(str(tmp_path / 'x.png'), picture())
    found = predictor(tmp_path / 'x.png')
    assert isinstance(found, Instances)
    assert found.boxes.tolist() == [[16, 64, 80, 256], [0, 0, 32, 64]]
    assert found.labels.tolist() == [1, 0]
    assert found.scores == pytest.approx([0.9, 0.2])
    upper = np.zeros((256, 200), bool)
    upper[:128] = True
    assert found.masks.dtype == bool
    assert (found.masks[0] != upper).mean() < 0.01
    assert (found.masks[1] == upper).mean() < 0.01
    assert found.from_score(0.3).labels.tolist() == [1]
    assert predictor.painter.name(1) == 'dog'
    assert (predictor.category_ids, predictor.detects) == ((17, 18), True)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_label_maps_are_enlarged_logits_and_batches_are_single_images(suffix: str, tmp_path: Path) -> None:
    predictor = FilePredictor(small_files.write(small_files.SEGMENTOR, tmp_path / f'model{suffix}', SEGMENTOR))
    pictures = [picture(), np.ascontiguousarray(picture()[::-1])]
    items = [predictor.take(image, Path('x'), 1, 'x', 0) for image in pictures]
    together = predictor.predict(items)
    for image, labels in zip(pictures, together):
        small = cv2.resize(image, (100, 64), interpolation=cv2.INTER_LINEAR)[..., ::-1].transpose(2, 0, 1)
        logits = torch.from_numpy(small.astype(np.float32))[None]
        expected = F.interpolate(logits, (256, 200), mode='bilinear', align_corners=False)[0].argmax(0).numpy()
        assert np.array_equal(labels, expected)
        assert np.array_equal(predictor(image), expected)


def test_the_documented_call_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in documents.blocks(ROOT / 'docs/prediction.md', 'python') if 'FilePredictor' in block)
    monkeypatch.chdir(tmp_path)
    small_files.write(small_files.SEGMENTOR, Path('model.onnx'), SEGMENTOR)
    cv2.imwrite('photo.jpg', picture())
    names: dict[str, object] = {}
    exec(block, names)
    assert names['prediction'].shape == (256, 200)


def test_one_channel_is_a_probability(tmp_path: Path) -> None:
    text = small_files.SEGMENTOR.replace('[N, 3, H, W] logits', '[N, 1, H, W] logits').replace(
        'logits = Identity(images)', 'first = Constant<value = int64[1] {0}>() logits = Gather<axis = 1>(images, first)'
    )
    meta = replace(SEGMENTOR, channel_order='BGR', resize=None, binary_threshold=0.7)
    image = np.zeros((8, 8, 3), np.uint8)
    image[3, 4, 0] = 1  # a probability of 0.73, and of 0.5 elsewhere
    labels = FilePredictor(small_files.write(text, tmp_path / 'model.onnx', meta))(image)
    assert np.argwhere(labels).tolist() == [[3, 4]]


def test_images_that_are_too_small_are_skipped(tmp_path: Path) -> None:
    predictor = FilePredictor(small_files.write(small_files.SEGMENTOR, tmp_path / 'model.onnx', SEGMENTOR))
    with pytest.raises(Skipped, match=r'^the model would take it as 100x7 pixels, and the exported file is for'):
        predictor(picture(28))


@pytest.mark.parametrize(
    ('meta', 'line'),
    [
        (None, r'model.onnx does not say how to prepare images for it: export it with tools/export.py$'),
        (replace(SEGMENTOR, cannot_prepare='it pads'), 'model.onnx does not say how to prepare images for it: it pads'),
        (replace(SEGMENTOR, task='features'), 'gives feature maps, from which nothing can be predicted'),
    ],
)
def test_files_that_nothing_can_be_predicted_with_are_one_line(
    meta: Metadata | None, line: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        FilePredictor(small_files.write(small_files.SEGMENTOR, tmp_path / 'model.onnx', meta))


def test_files_that_cannot_be_opened_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('model.onnx', 'model.xml'):
        (tmp_path / name).write_text('no model')
    path = small_files.write(small_files.SEGMENTOR, tmp_path / 'whole.onnx', SEGMENTOR)
    cases = [
        ((tmp_path / 'model.onnx',), 'model.onnx cannot be read as a model: '),
        ((tmp_path / 'model.pt2',), 'exported files that can be run end in .onnx or .xml'),
        ((tmp_path / 'no.onnx',), 'no.onnx does not exist'),
        ((path, 'abacus'), '--device abacus cannot be used by the onnxruntime that is installed'),
        ((path, 'cpu', 'bfloat16'), 'is run in float32: only OpenVINO'),
    ]
    if find_spec('openvino'):
        cases.append(((tmp_path / 'model.xml',), 'model.xml cannot be read as a model: '))
    for arguments, line in cases:
        with pytest.raises(UserError, match=line):
            FilePredictor(*arguments)
    monkeypatch.setattr('cvt_dense.apis.runtimes.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'a .onnx file needs packages .*: pip install onnxruntime$'):
        FilePredictor(path)
