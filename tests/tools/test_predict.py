"""Prediction on files as users have them, with random weights: what is written, and what is said when it goes wrong."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import export
import numpy as np
import predict
import pytest
import small_files
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope
from mmengine.utils import import_modules_from_strings
from paths import ROOT
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from cvt_dense import cli
from cvt_dense.apis import Item, Predictor
from cvt_dense.apis.metadata import Metadata, Resize
from cvt_dense.apis.run import batches
from cvt_dense.visualization.painter import Painter, write_image

DETECTION = ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'
SEGMENTATION = ROOT / 'configs/upernet_cvttiny_shapes.py'
SHAPES = ('ellipse', 'rectangle', 'triangle', 'star', 'ring')
FEW = ('--score-thr', '0.1', '--cfg-options', 'model.test_cfg.rcnn.max_per_img=4')


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """For each config a checkpoint as mmengine writes it, of random weights."""
    folder = tmp_path_factory.mktemp('checkpoints')
    written = {}
    for config in (DETECTION, SEGMENTATION):
        torch.manual_seed(1)
        cfg = Config.fromfile(config)
        cfg.model.backbone.init_cfg = None
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        meta = dict(dataset_meta=cfg.test_dataloader.dataset.metainfo.to_dict())
        history = dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])})
        written[config] = folder / f'{config.stem}.pth'
        torch.save(dict(state_dict=model.state_dict(), meta=meta, message_hub=history), written[config])
    return written


@pytest.fixture
def tool(
    checkpoints: dict[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, Path]]:
    """Runs the tool with a config and its checkpoint; returns the exit code and the folder that was written to."""

    def run(config: Path, *arguments: object, out: str = 'out') -> tuple[int, Path]:
        argv = ['predict.py', config, checkpoints[config], *arguments]
        if '--cfg-options' in argv:
            place = argv.index('--cfg-options')
            argv[place:place] = ['--out', tmp_path / out]
        else:
            argv += ['--out', tmp_path / out]
        monkeypatch.setattr(sys, 'argv', [str(argument) for argument in argv])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as done:
            cli.run(predict.main)
        return done.value.code, tmp_path / out

    return run


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image ``(height, width, 3)`` of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)


def write(path: Path, height: int = 64, width: int = 96, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(height, width, seed))
    return path


def write_video(path: Path, frames: int = 7, height: int = 48, width: int = 64, code: str = 'mp4v') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 12.5, (width, height))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.roll(picture(height, width), 4 * i, 1))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """The frames of a video, and how many there are a second."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def content(path: Path) -> object:
    return json.loads(path.read_text())


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr, without the progress bars."""
    lines = re.split(r'[\r\n]', capsys.readouterr().err)
    return [
        line for line in lines if line.strip() and 'it/s' not in line and '?image/s' not in line and '%|' not in line
    ]


def test_a_detector_predicts_on_files_folders_and_globs(tool: Callable, tmp_path: Path) -> None:
    write(tmp_path / 'one.png', 100, 50)
    write(tmp_path / 'folder/two.jpg', 64, 96)
    write(tmp_path / 'folder/three.JPG', 333, 201)
    (tmp_path / 'folder/notes.txt').write_text('no image')
    write(tmp_path / 'deep/a/b/four.webp', 40, 40)
    code, out = tool(DETECTION, 'one.png', 'folder', 'deep/**', 'folder/t*', *FEW)
    assert code == 0

    images = content(out / 'images.json')
    assert images['categories'] == [{'id': i, 'name': name} for i, name in enumerate(SHAPES, 1)]
    described = [(e['id'], e['file_name'], e['height'], e['width']) for e in images['images']]
    assert described == [
        (1, 'one.png', 100, 50),
        (2, 'folder/three.JPG', 333, 201),
        (3, 'folder/two.jpg', 64, 96),
        (4, 'deep/a/b/four.webp', 40, 40),
    ]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob('*.jpg')) == sorted(
        entry['picture'] for entry in images['images']
    )
    sizes = {entry['id']: (entry['height'], entry['width']) for entry in images['images']}
    predictions = content(out / 'predictions.json')
    assert {entry['image_id'] for entry in predictions} == {1, 2, 3, 4}
    for entry in predictions:
        height, width = sizes[entry['image_id']]
        x, y, w, h = entry['bbox']
        assert x >= 0
        assert y >= 0
        assert x + w <= width + 0.02
        assert y + h <= height + 0.02
        assert 0.1 <= entry['score'] <= 1
        assert entry['category_name'] == SHAPES[entry['category_id'] - 1]
        assert entry['file_name'] == images['images'][entry['image_id'] - 1]['file_name']
        assert rle.decode(entry['segmentation']).shape == (height, width)
    for entry in images['images']:
        zoom = max(1, -(-480 // max(entry['height'], entry['width'])))
        assert cv2.imread(str(out / entry['picture'])).shape == (zoom * entry['height'], zoom * entry['width'], 3)

    results = COCO(str(out / 'images.json')).loadRes(str(out / 'predictions.json'))
    assert len(results.getAnnIds()) == len(predictions)


def test_scores_below_the_threshold_are_left_out(tool: Callable, tmp_path: Path) -> None:
    write(tmp_path / 'x.png')
    _, out = tool(DETECTION, 'x.png', '--score-thr', '0', '--cfg-options', 'model.test_cfg.rcnn.max_per_img=9')
    scores = sorted(entry['score'] for entry in content(out / 'predictions.json'))
    assert len(scores) == 9
    middle = (scores[3] + scores[4]) / 2
    _, out = tool(DETECTION, 'x.png', '--score-thr', middle, '--cfg-options', 'model.test_cfg.rcnn.max_per_img=9')
    assert sorted(entry['score'] for entry in content(out / 'predictions.json')) == scores[4:]
    code, out = tool(DETECTION, 'x.png', '--score-thr', '1')
    assert code == 0
    assert content(out / 'predictions.json') == []
    assert content(out / 'images.json')['images'][0]['file_name'] == 'x.png'


def test_a_detector_without_masks_predicts_boxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: dict[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'boxes.py').write_text(f"_base_ = '{DETECTION}'\nmodel = dict(roi_head=dict(mask_head=None))\n")
    write(tmp_path / 'x.png')
    out = tmp_path / 'out'
    argv = ['predict.py', tmp_path / 'boxes.py', checkpoints[DETECTION], tmp_path / 'x.png', '--out', out, *FEW]
    monkeypatch.setattr(sys, 'argv', [str(argument) for argument in argv])
    with pytest.raises(SystemExit) as done:
        cli.run(predict.main)
    assert done.value.code == 0
    predictions = content(out / 'predictions.json')
    assert len(predictions) == 4
    assert all('segmentation' not in entry for entry in predictions)
    (note,) = errors(capsys)
    assert re.match(r'note: \d+ tensors of .* are not in the model and unused: roi_head.mask_head', note)


def test_a_segmentor_writes_label_maps_and_shares(tool: Callable, tmp_path: Path) -> None:
    write(tmp_path / 'folder/one.png', 100, 150)
    write(tmp_path / 'folder/two.jpg', 64, 96)
    code, out = tool(SEGMENTATION, 'folder', '--batch-size', 2)
    assert code == 0
    assert not (out / 'predictions.json').exists()
    images = content(out / 'images.json')
    assert images['categories'][:2] == [{'id': 0, 'name': 'background'}, {'id': 1, 'name': 'ellipse'}]
    names = [entry['name'] for entry in images['categories']]
    assert [entry['file_name'] for entry in images['images']] == ['folder/one.png', 'folder/two.jpg']
    for entry in images['images']:
        labels = cv2.imread(str(out / entry['label_map']), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8
        assert labels.shape == (entry['height'], entry['width'])
        assert sum(entry['shares'].values()) == pytest.approx(1, abs=1e-5)
        for name, share in entry['shares'].items():
            assert share == pytest.approx((labels == names.index(name)).mean(), abs=1e-6)
        drawn = cv2.imread(str(out / entry['picture']))
        assert drawn.shape[1] > drawn.shape[0] * entry['width'] / entry['height'] + 50, 'the legend'


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_batches_give_what_single_images_give(config: Path, tool: Callable, tmp_path: Path) -> None:
    """Of mixed sizes: none is padded to another's size."""
    for i, size in enumerate([(64, 96), (48, 80), (64, 96), (96, 64), (64, 96), (48, 80), (64, 96)]):
        write(tmp_path / f'in/{i}.png', *size, seed=i)
    few = FEW if config == DETECTION else ()
    _, single = tool(config, 'in', *few, out='single')
    _, batched = tool(config, 'in', '--batch-size', 3, *few, out='batched')
    ours, theirs = content(batched / 'images.json'), content(single / 'images.json')
    assert [e['file_name'] for e in ours['images']] == [e['file_name'] for e in theirs['images']]
    if config == SEGMENTATION:
        for one, other in zip(ours['images'], theirs['images']):
            maps = [cv2.imread(str(folder / one['label_map']), 0) for folder in (batched, single)]
            assert (maps[0] != maps[1]).mean() < 1e-3
            assert one['shares'] == pytest.approx(other['shares'], abs=1e-3)
        return
    ours, theirs = content(batched / 'predictions.json'), content(single / 'predictions.json')
    assert len(ours) == len(theirs) == 7 * 4
    for one, other in zip(ours, theirs):
        assert (one['file_name'], one['category_id']) == (other['file_name'], other['category_id'])
        assert one['bbox'] == pytest.approx(other['bbox'], abs=0.05)
        assert one['score'] == pytest.approx(other['score'], abs=1e-4)
        masks = [rle.decode(entry['segmentation']) for entry in (one, other)]
        assert (masks[0] != masks[1]).mean() < 1e-3


def test_batches_have_one_size_and_few_images_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def item(number: int, side: int) -> Item:
        packed = dict(inputs=torch.empty(3, side, 8))
        return Item(number, Path('x'), 'x', None, np.empty((side, 8, 3), np.uint8), packed)

    sides = [1, 2, 1, 1, 2, 3]
    made = [[i.image_id for i in batch] for batch in batches((item(i, s) for i, s in enumerate(sides)), 2)]
    assert made == [[0, 2], [1, 4], [3], [5]]
    taken: list[int] = []

    def many() -> object:
        for i in range(100):
            taken.append(i)
            yield item(i, i)

    given = 0
    for batch in batches(many(), 3):
        assert len({i.image.shape for i in batch}) == 1
        assert len(taken) - given <= 12
        given += len(batch)
    assert given == 100


def test_outputs_of_inputs_with_one_name_do_not_collide(tool: Callable, tmp_path: Path) -> None:
    files = ['a/x.jpg', 'b/x.jpg', 'a/x.png', 'a/X.bmp']
    for i, name in enumerate(files):
        write(tmp_path / name, 40 + i, 40)
    code, out = tool(SEGMENTATION, *files)
    assert code == 0
    images = content(out / 'images.json')['images']
    assert [entry['picture'] for entry in images] == [
        'pictures/a/x.jpg',
        'pictures/b/x.jpg',
        'pictures/a/x-2.jpg',
        'pictures/a/X-3.jpg',
    ]
    for entry in images:
        assert cv2.imread(str(out / entry['label_map']), 0).shape == (entry['height'], 40)
    assert [entry['height'] for entry in images] == [40, 41, 42, 43]


def test_unreadable_images_are_reported_and_the_rest_go_on(
    tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / 'in/good.png')
    write(tmp_path / 'in/zgood.png')
    (tmp_path / 'in/empty.jpg').touch()
    (tmp_path / 'in/text.jpg').write_text('this is no image')
    for suffix in ('jpg', 'png'):
        whole = write(tmp_path / f'whole.{suffix}', 300, 400).read_bytes()
        (tmp_path / f'in/half_{suffix}.{suffix}').write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / 'in/gone.png').symlink_to(tmp_path / 'gone.png')
    code, out = tool(DETECTION, 'in', '--batch-size', 2, *FEW)
    assert code == 1
    assert [e['file_name'] for e in content(out / 'images.json')['images']] == ['in/good.png', 'in/zgood.png']
    assert len(list((out / 'pictures').iterdir())) == 2
    lines = [line for line in errors(capsys) if line.startswith('skipped')]
    assert lines == [
        'skipped in/empty.jpg: it cannot be read as an image (it is empty)',
        "skipped in/gone.png: it cannot be read as an image ([Errno 2] No such file or directory: 'in/gone.png')",
        'skipped in/half_jpg.jpg: it cannot be read as an image (it breaks off before its end)',
        'skipped in/half_png.png: it cannot be read as an image (it breaks off before its end)',
        'skipped in/text.jpg: it cannot be read as an image (failed to load image: in/text.jpg)',
    ]


def test_what_the_model_cannot_take_is_reported(
    tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / 'in/good.png')
    write(tmp_path / 'in/tiny.png', 9, 40)
    code, out = tool(SEGMENTATION, 'in')
    assert code == 1
    assert len(content(out / 'images.json')['images']) == 1
    (line,) = [line for line in errors(capsys) if line.startswith('skipped')]
    assert line.startswith('skipped in/tiny.png: the model refuses it (CvT takes at least one image of at least 16x16')
    write(tmp_path / 'thin.png', 1, 2000)
    code, _ = tool(DETECTION, 'thin.png')
    assert code == 1
    (line,) = [line for line in errors(capsys) if line.startswith('skipped')]
    assert 'thin.png: ' in line


def test_images_too_large_for_the_memory_are_reported(
    tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr('mmseg.models.EncoderDecoder.test_step', no_memory)
    write(tmp_path / 'x.png')
    code, out = tool(SEGMENTATION, 'x.png')
    assert code == 1
    assert content(out / 'images.json')['images'] == []
    assert any(line.startswith('skipped x.png: no memory for it: lower --batch-size') for line in errors(capsys))


def save_formats(folder: Path) -> dict[str, np.ndarray]:
    """One image in many formats, beside what they show: ``(H, W, 3)`` of RGB."""
    folder.mkdir()
    rgb = picture(60, 90)[..., ::-1]
    image = Image.fromarray(rgb)
    grey = np.asarray(image.convert('L'))
    grey_everywhere = np.repeat(grey[..., None], 3, 2)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(folder / 'plain.png')
    image.save(folder / 'exif.jpg', exif=exif, quality=100, subsampling=0)
    image.convert('L').save(folder / 'grey.png')
    image.convert('L').save(folder / 'grey.jpg', quality=100)
    image.convert('RGBA').save(folder / 'rgba.png')
    Image.merge('LA', [image.convert('L'), Image.new('L', image.size, 255)]).save(folder / 'grey_alpha.png')
    image.quantize(64).save(folder / 'palette.png')
    image.convert('CMYK').save(folder / 'cmyk.jpg', quality=100, subsampling=0)
    image.convert('CMYK').save(folder / 'cmyk.tif')
    wide = rgb.astype(np.uint16) * 257
    cv2.imwrite(str(folder / 'deep.png'), wide[..., ::-1])
    cv2.imwrite(str(folder / 'deep.tif'), wide[..., ::-1])
    cv2.imwrite(str(folder / 'deep_grey.png'), grey.astype(np.uint16) * 257)
    shown = {path.name: rgb for path in folder.iterdir()}
    shown['exif.jpg'] = np.rot90(rgb, -1)
    return shown | dict.fromkeys(('grey.png', 'grey.jpg', 'grey_alpha.png', 'deep_grey.png'), grey_everywhere)


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_all_kinds_of_images_look_as_they_are_meant(
    config: Path, tool: Callable, tmp_path: Path, checkpoints: dict[Path, Path]
) -> None:
    """To the model as in the picture, and as OpenCV reads them."""
    shown = save_formats(tmp_path / 'in')
    predictor = Predictor(Config.fromfile(config), str(checkpoints[config]), torch.device('cpu'))
    for name, expected in shown.items():
        item = predictor.load(tmp_path / 'in' / name, 1, 'x')
        assert np.array_equal(item.image, cv2.imread(str(tmp_path / 'in' / name))), name
        assert item.image.shape == expected.shape, name
        assert np.abs(item.image[..., ::-1].astype(int) - expected).mean() < 4, name
        inputs = item.packed['inputs'].permute(1, 2, 0).numpy()
        resized = cv2.resize(item.image, inputs.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(inputs.astype(int) - resized).mean() < 1, name

    code, out = tool(config, 'in', *(['--score-thr', '1'] if config == DETECTION else []))
    assert code == 0
    for entry in content(out / 'images.json')['images']:
        expected = shown[Path(entry['file_name']).name]
        assert (entry['height'], entry['width']) == expected.shape[:2]
        drawn = cv2.imread(str(out / entry['picture']))
        zoom = drawn.shape[0] // entry['height']
        if config == DETECTION:
            small = cv2.resize(drawn, expected.shape[1::-1], interpolation=cv2.INTER_AREA)[..., ::-1]
            assert np.abs(small.astype(int) - expected).mean() < 8, entry['file_name']
        else:
            assert drawn.shape[1] > zoom * entry['width']


def test_a_detector_predicts_on_videos(tool: Callable, tmp_path: Path) -> None:
    write_video(tmp_path / 'in/film.avi', 7, code='FFV1')
    write(tmp_path / 'in/film.png')
    code, out = tool(DETECTION, 'in', '--batch-size', 3, *FEW)
    assert code == 0
    images = content(out / 'images.json')['images']
    assert images[0]['file_name'] == 'in/film.png'
    assert images[0]['picture'] == 'pictures/film-2.jpg'
    assert [entry['frame'] for entry in images[1:]] == list(range(7))
    for entry in images[1:]:
        assert (entry['file_name'], entry['picture']) == ('in/film.avi', 'pictures/film.mp4')
        assert (entry['height'], entry['width']) == (48, 64)
    predictions = [entry for entry in content(out / 'predictions.json') if 'frame' in entry]
    assert {entry['frame'] for entry in predictions} == set(range(7))
    frame_of = {entry['id']: entry.get('frame') for entry in images}
    assert all(frame_of[entry['image_id']] == entry['frame'] for entry in predictions)
    frames, pace = read_video(out / 'pictures/film.mp4')
    assert [frame.shape for frame in frames] == [(8 * 48, 8 * 64, 3)] * 7
    assert pace == pytest.approx(12.5)


def test_a_frame_is_predicted_as_a_picture_of_it_is(tool: Callable, tmp_path: Path) -> None:
    write_video(tmp_path / 'film.avi', 3, code='FFV1')
    frames, _ = read_video(tmp_path / 'film.avi')
    cv2.imwrite(str(tmp_path / 'frame.png'), frames[1])
    _, out = tool(DETECTION, 'frame.png', 'film.avi', *FEW)
    of = {key: [] for key in (None, 0, 1, 2)}
    for entry in content(out / 'predictions.json'):
        of[entry.get('frame')].append([entry['bbox'], entry['score'], entry['segmentation']])
    assert of[None] == of[1]
    assert of[None] != of[2]


def test_a_segmentor_predicts_on_videos(tool: Callable, tmp_path: Path) -> None:
    write_video(tmp_path / 'film.mp4', 4)
    code, out = tool(SEGMENTATION, 'film.mp4')
    assert code == 0
    images = content(out / 'images.json')['images']
    assert [entry['label_map'] for entry in images] == [f'label_maps/film.mp4/{i:06}.png' for i in range(4)]
    for entry in images:
        assert cv2.imread(str(out / entry['label_map']), 0).shape == (48, 64)
        assert sum(entry['shares'].values()) == pytest.approx(1, abs=1e-5)
    frames, _ = read_video(out / 'pictures/film.mp4')
    assert len(frames) == 4
    assert frames[0].shape[1] > 512


def test_broken_videos_are_reported_and_the_rest_go_on(
    tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/empty.mp4').touch()
    (tmp_path / 'in/text.avi').write_text('this is no video')
    whole = write_video(tmp_path / 'whole.mp4', 20).read_bytes()
    (tmp_path / 'in/half.mp4').write_bytes(whole[: len(whole) // 2])
    whole = write_video(tmp_path / 'whole.avi', 40, code='MJPG').read_bytes()
    (tmp_path / 'in/short.avi').write_bytes(whole[: len(whole) // 2])
    write_video(tmp_path / 'in/whole.mp4', 2)
    code, out = tool(DETECTION, 'in', *FEW)
    assert code == 1
    lines = errors(capsys)
    assert lines[:2] == [
        'skipped in/empty.mp4: it cannot be read as a video',
        'skipped in/half.mp4: it cannot be read as a video',
    ]
    done = re.fullmatch(
        r'skipped in/short.avi: it breaks off after (\d+) of 40 frames, which are in pictures/short.mp4', lines[2]
    )
    assert lines[3:] == ['skipped in/text.avi: it cannot be read as a video']
    assert len(read_video(out / 'pictures/short.mp4')[0]) == int(done[1])
    assert len(read_video(out / 'pictures/whole.mp4')[0]) == 2
    assert {e['file_name'] for e in content(out / 'images.json')['images']} == {'in/short.avi', 'in/whole.mp4'}


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_a_picture_that_cannot_be_written_costs_no_prediction(
    config: Path,
    tool: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in 'abc':
        write(tmp_path / f'in/{name}.png')
    (tmp_path / 'out/pictures/b.jpg').mkdir(parents=True)
    monkeypatch.setattr('cvt_dense.visualization.painter.JPEG_LIMIT', 2000)
    write(tmp_path / 'in/long.png', 20, 2001)
    code, out = tool(config, 'in', *(FEW if config == DETECTION else ()))
    assert code == 1
    lines = [line for line in errors(capsys) if line.startswith('skipped')]
    kept = 'its predictions are in the JSON files, but the picture cannot be written'
    assert lines[0] == f"skipped in/b.png: {kept} ([Errno 21] Is a directory: '{out / 'pictures/b.jpg'}')"
    assert lines[1].startswith(f'skipped in/long.png: {kept} (a JPEG has at most 2000 pixels a side')
    images = content(out / 'images.json')['images']
    assert [Path(entry['file_name']).stem for entry in images] == ['a', 'b', 'c', 'long']
    assert ['picture' in entry for entry in images] == ['note' not in entry for entry in images] == [1, 0, 1, 0]
    if config == DETECTION:
        assert {entry['image_id'] for entry in content(out / 'predictions.json')} == {1, 2, 3, 4}


def test_a_label_map_that_cannot_be_written_is_named(
    tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in 'ab':
        write(tmp_path / f'in/{name}.png')
    (tmp_path / 'out/label_maps/a.png').mkdir(parents=True)
    code, out = tool(SEGMENTATION, 'in')
    assert code == 1
    (line,) = [line for line in errors(capsys) if line.startswith('skipped')]
    assert line.startswith('skipped in/a.png: its predictions are in the JSON files, but the label map cannot be wri')
    first, second = content(out / 'images.json')['images']
    assert first.keys() - second.keys() == {'note'}
    assert second.keys() - first.keys() == {'picture', 'label_map'}


def test_a_full_disk_ends_the_run(
    tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, image: np.ndarray) -> None:
        if path.stem == 'b':
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        write_image(path, image)

    monkeypatch.setattr('cvt_dense.apis.output.write_image', full)
    for name in 'abc':
        write(tmp_path / f'in/{name}.png')
    code, out = tool(DETECTION, 'in', *FEW)
    assert code == 2
    assert errors(capsys)[-1].startswith('error: No space left on device: ')
    assert [entry['file_name'] for entry in content(out / 'images.json')['images']] == ['in/a.png', 'in/b.png']


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_predicted(
    tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / 'x.png')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/pictures').write_text('a file')
    code, _ = tool(DETECTION, 'x.png', *FEW)
    assert code == 2
    assert errors(capsys)[-1] == f'error: File exists: {tmp_path / "out/pictures"}'
    assert not (tmp_path / 'out/images.json').exists()


def test_images_that_might_fill_the_memory_are_skipped(
    tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ('png', 'jpg', 'tif', 'webp', 'bmp'):
        write(tmp_path / f'in/large.{suffix}', 300, 300)
        write(tmp_path / f'in/warned.{suffix}', 200, 200)
    (tmp_path / 'in/warned.jpg').write_bytes((tmp_path / 'in/warned.jpg').read_bytes() + b'\xff\xda')
    write(tmp_path / 'in/small.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 30_000)  # it warns of more, and refuses twice as many
    code, out = tool(DETECTION, 'in', *FEW)
    assert code == 1
    lines = errors(capsys)
    assert len(lines) == 5
    for suffix, line in zip(('bmp', 'jpg', 'png', 'tif', 'webp'), lines):
        assert line.startswith(f'skipped in/large.{suffix}: it cannot be read as an image (Image size (90000 pixels)')
    assert len(content(out / 'images.json')['images']) == 6


def test_of_several_pictures_in_a_file_the_first_is_predicted_on_and_that_is_said(
    tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (Image.fromarray(picture(60, 90, seed)) for seed in range(2))
    (tmp_path / 'in').mkdir()
    for name in ('pages.tif', 'moving.webp', 'moving.png'):
        first.save(tmp_path / 'in' / name, save_all=True, append_images=[second])
    code, out = tool(DETECTION, 'in', *FEW)
    assert code == 0
    assert errors(capsys) == [
        f'note: in/{name} holds 2 pictures, and the first one is predicted on'
        for name in ('moving.png', 'moving.webp', 'pages.tif')
    ]
    assert len(content(out / 'images.json')['images']) == 3


def test_names_may_be_anything(tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b'n\xe9e')
    write(tmp_path / 'plain.png').rename(tmp_path / f'{name}.png')
    write_video(tmp_path / 'plain.avi', 2, code='MJPG').rename(tmp_path / f'{name}.avi')
    write(tmp_path / 'folder.jpg/x.png')
    code, out = tool(DETECTION, f'{name}.png', f'{name}.avi', 'folder.jpg', *FEW)
    assert code == 1
    (line,) = errors(capsys)
    assert line.endswith('.avi: it cannot be read as a video: its name is not UTF-8')
    assert (out / f'pictures/{name}.jpg').is_file()
    assert [entry['file_name'] for entry in content(out / 'images.json')['images']] == [
        f'{name}.png',
        'folder.jpg/x.png',
    ]


def test_videos_that_cannot_be_written_are_skipped(
    tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in 'ab':
        write_video(tmp_path / f'in/{name}.avi', 2, code='MJPG')
    (tmp_path / 'out/pictures/a.mp4').mkdir(parents=True)
    code, out = tool(DETECTION, 'in', *FEW)
    assert code == 1
    (line,) = errors(capsys)
    assert line.startswith('skipped in/a.avi: ')
    assert 'a.mp4 cannot be written ([Errno 21] Is a directory' in line
    assert len(read_video(out / 'pictures/b.mp4')[0]) == 2


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_types_may_be_classes(
    config: Path, checkpoints: dict[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As configs of the new style have them."""
    cfg = Config.fromfile(config)
    import_modules_from_strings([f'{cfg.default_scope}.{part}' for part in ('models', 'datasets')])
    registries = (MODELS, TRANSFORMS, DATASETS)

    def with_classes(part: Any) -> Any:
        if isinstance(part, (list, tuple)):
            return type(part)(map(with_classes, part))
        if not isinstance(part, dict):
            return part
        part = {key: with_classes(value) for key, value in part.items()}
        if isinstance(part.get('type'), str):
            found = (registry.get(f'{cfg.default_scope}.{part["type"]}') for registry in registries)
            part['type'] = next(filter(None, found), part['type'])
        return part

    cfg.model = with_classes(cfg.model.to_dict())
    cfg.test_dataloader = dict(dataset=with_classes(cfg.test_dataloader.dataset.to_dict()))
    assert not isinstance(cfg.test_dataloader.dataset.pipeline[0].type, str)
    assert isinstance(cfg.model.type, type)
    monkeypatch.setattr('cvt_dense.engine.config.load_config', lambda *_: cfg)
    write(tmp_path / 'x.png')
    out = tmp_path / 'out'
    monkeypatch.setattr(
        sys, 'argv', ['predict.py', 'x', str(checkpoints[config]), str(tmp_path / 'x.png'), '--out', str(out)]
    )
    with pytest.raises(SystemExit) as done:
        cli.run(predict.main)
    assert done.value.code == 0
    assert len(content(out / 'images.json')['images']) == 1


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ('exit 1',)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(config='nope.py'), 'config nope.py does not exist'),
        (dict(checkpoint='nope.pth'), 'checkpoint nope.pth does not exist'),
        (dict(checkpoint='text.pth'), 'checkpoint text.pth is damaged, incomplete or not a checkpoint'),
        (dict(checkpoint='harmful.pth'), 'checkpoint harmful.pth was refused'),
        (dict(checkpoint='other'), 'does not fit this config: it lacks'),
        (dict(input='nope.jpg'), 'input nope.jpg does not exist'),
        (dict(input='nope/*.jpg'), 'no image or video matches nope/*.jpg'),
        (dict(options=['--batch-size', '0']), '--batch-size must be at least 1, got 0'),
        (dict(options=['--score-thr', '1.5']), '--score-thr must lie between 0 and 1, got 1.5'),
        (dict(options=['--device', 'abacus']), '--device abacus cannot be used'),
        (dict(options=['--device', 'cuda:99']), '--device cuda:99 cannot be used, --device cpu always can'),
        (dict(options=['--out', 'x.png']), 'File exists: x.png'),
        (dict(options=['--cfg-options', 'modle.type=X']), "has a setting 'modle'"),
        (dict(options=['--cfg-options', 'model.type=X']), 'the config cannot be built'),
        (dict(options=['--cfg-options', 'test_dataloader.dataset.pipeline=[]']), 'must begin with LoadImageFromFile'),
        (dict(options=['--cfg-options', 'test_dataloader=None']), 'has no test_dataloader.dataset.pipeline'),
        (dict(options=['--cfg-options', 'default_scope=mmpose']), 'is one of mmpose; this tool is for mmdet and mmseg'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_mistakes_are_one_line_and_exit_code_2(
    change: dict,
    message: str,
    checkpoints: dict[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / 'x.png')
    (tmp_path / 'text.pth').write_text('this is no checkpoint')
    (tmp_path / 'harmful.pth').write_bytes(pickle.dumps(Harmful()))
    checkpoint = change.get('checkpoint', checkpoints[DETECTION])
    if checkpoint == 'other':
        checkpoint = checkpoints[SEGMENTATION]
    options = change.get('options', [])
    out = [] if '--out' in options else ['--out', 'out']
    argv = [change.get('config', DETECTION), checkpoint, change.get('input', 'x.png'), *out, *options]
    monkeypatch.setattr(sys, 'argv', ['predict.py', *map(str, argv)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        cli.run(predict.main)
    assert done.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert message in last
    assert not (tmp_path / 'out').exists()


def test_a_score_threshold_does_not_go_with_segmentation(
    tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / 'x.png')
    code, _ = tool(SEGMENTATION, 'x.png', '--score-thr', '0.5')
    assert code == 2
    assert errors(capsys) == ['error: --score-thr is for detection: a segmentor gives each pixel its best class']


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_class_names_are_the_checkpoints_or_else_the_configs(
    config: Path, checkpoints: dict[Path, Path], tmp_path: Path
) -> None:
    saved = torch.load(checkpoints[config], weights_only=False)
    renamed, bare = tmp_path / 'renamed.pth', tmp_path / 'bare.pth'
    names = [f'renamed {i}' for i in range(6)]
    torch.save(saved | dict(meta=dict(dataset_meta=dict(CLASSES=names))), renamed)
    torch.save(saved['state_dict'], bare)

    def painter(checkpoint: Path) -> Painter:
        return Predictor(Config.fromfile(config), str(checkpoint), torch.device('cpu')).painter

    assert painter(renamed).classes == names
    expected = Config.fromfile(config).test_dataloader.dataset.metainfo
    assert painter(bare).classes == list(expected.classes)
    assert painter(bare).color(1) == tuple(expected.palette[1])


WITHOUT_TOOLKITS = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(['mmengine', 'mmcv', 'mmdet', 'mmseg']))
sys.argv[0] = {str(ROOT / 'tools/predict.py')!r}
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def predict_with_file(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run the tool where no toolkit can be imported."""
    command = [sys.executable, '-W', 'ignore', '-c', WITHOUT_TOOLKITS, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_an_exported_detector_predicts_without_toolkits(tmp_path: Path) -> None:
    meta = Metadata('detection', 'RGB', 8, Resize((96, 64), keep_ratio=True), None, ('cat', 'dog'), (17, 18), None, 0.3)
    small_files.write(small_files.DETECTOR, tmp_path / 'model.onnx', meta)
    write(tmp_path / 'in/x.png', 128, 192)
    write_video(tmp_path / 'in/y.mp4', 2)
    (tmp_path / 'in/z.png').write_text('no image')
    ended = predict_with_file(tmp_path, 'model.onnx', 'in', '--score-thr', '0.1', '--batch-size', '2')
    assert ended.returncode == 1, ended.stderr
    out = tmp_path / 'work_dirs/model/predictions'
    assert ended.stdout.splitlines()[-1] == (
        'inputs: 3, 1 skipped; pictures and JSON files are in work_dirs/model/predictions'
    )
    assert 'skipped in/z.png: it cannot be read as an image (failed to load image: in/z.png)' in ended.stderr
    entries = [entry for entry in content(out / 'predictions.json') if entry['image_id'] == 1]
    assert [entry['bbox'] for entry in entries] == [[16, 32, 64, 96], [0, 0, 32, 32]]
    assert [(entry['category_id'], entry['category_name']) for entry in entries] == [(18, 'dog'), (17, 'cat')]
    assert rle.decode(entries[0]['segmentation']).shape == (128, 192)
    assert content(out / 'images.json')['categories'] == [{'id': 17, 'name': 'cat'}, {'id': 18, 'name': 'dog'}]
    assert len(read_video(out / 'pictures/y.mp4')[0]) == 2
    assert COCO(str(out / 'images.json')).loadRes(str(out / 'predictions.json')).getAnnIds()


class Unwritten:
    """What stands for an exported file and its runtime: the model that would be written."""

    def __init__(self, model: torch.nn.Module, meta: Metadata) -> None:
        self.model, self.text = model, meta.to_json()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            (logits,) = self.model(torch.from_numpy(images))
        return {'logits': logits.numpy()}


@pytest.mark.parametrize('written', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['unwritten', 'onnx'])
def test_an_exported_segmentor_gives_what_the_model_gives_on_real_pictures(
    written: bool,
    tool: Callable,
    checkpoints: dict[Path, Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for i, path in enumerate(sorted((data / 'ade_mini').rglob('*.jpg'))[:3]):
        whole = cv2.imread(str(path))
        (tmp_path / 'in').mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f'in/{i}.png'), whole[: 301 + i, : 403 - i])
    resize = dict(type='Resize', scale=(211, 160), keep_ratio=True)
    steps = [dict(type='LoadImageFromFile'), resize, dict(type='PackSegInputs')]
    (tmp_path / 'config.py').write_text(
        f"_base_ = '{SEGMENTATION}'\ntest_dataloader = dict(dataset=dict(pipeline={steps}))\n"
    )
    checkpoints[tmp_path / 'config.py'] = checkpoints[SEGMENTATION]
    code, theirs = tool(tmp_path / 'config.py', 'in', out='theirs')
    assert code == 0
    arguments = [tmp_path / 'config.py', checkpoints[SEGMENTATION], '--out', tmp_path / 'model.onnx']
    monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, arguments)])
    if written:
        export.main()
        ended = predict_with_file(tmp_path, 'model.onnx', 'in', '--out', 'ours')
        assert ended.returncode == 0, ended.stderr
    else:
        files: dict[str, Unwritten] = {}
        monkeypatch.setattr(export, 'export', lambda model, path, meta, _: files.update(x=Unwritten(model, meta)))
        export.main()
        monkeypatch.setattr('cvt_dense.apis.file_predictor.open_file', lambda *_: files['x'])
        monkeypatch.setattr(sys, 'argv', ['predict.py', 'model.onnx', 'in', '--out', 'ours'])
        with pytest.raises(SystemExit) as done:
            cli.run(predict.main)
        assert done.value.code == 0
    ours = tmp_path / 'ours'
    first, second = content(ours / 'images.json'), content(theirs / 'images.json')
    assert first['categories'] == second['categories']
    for one, other in zip(first['images'], second['images'], strict=True):
        assert one.pop('shares') == pytest.approx(other.pop('shares'), abs=1e-3)
        assert one == other
        maps = [cv2.imread(str(folder / one['label_map']), 0) for folder in (ours, theirs)]
        assert (maps[0] != maps[1]).mean() < 1e-3
        drawn = [cv2.imread(str(folder / one['picture'])).astype(int) for folder in (ours, theirs)]
        assert drawn[0].shape == drawn[1].shape
        assert (abs(drawn[0] - drawn[1]) > 32).mean() < 1e-2


@pytest.mark.parametrize(
    ('arguments', 'line'),
    [
        (['model.onnx', 'x.png', '--score-thr', '0.5'], '--score-thr is for detection: a segmentor gives each pixel'),
        (['model.onnx', 'x.png', '--cfg-options', 'a=1'], 'mmengine is not installed: pip install onedl-mmengine'),
        (['other.onnx', 'x.png'], 'other.onnx does not say how to prepare images for it: export it with tools/exp'),
        (['no.xml', 'x.png'], 'no.xml does not exist'),
        (['model.onnx', 'x.png', '--precision', 'bfloat16'], 'model.onnx is run in float32: only OpenVINO'),
    ],
    ids=['score', 'config', 'foreign', 'missing', 'precision'],
)
def test_mistakes_with_exported_files_are_one_line(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_files.write(small_files.SEGMENTOR, tmp_path / 'model.onnx', Metadata('segmentation', 'RGB'))
    small_files.write(small_files.SEGMENTOR, tmp_path / 'other.onnx', None)
    write(tmp_path / 'x.png')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['predict.py', *arguments])
    monkeypatch.setitem(sys.modules, 'mmengine', None)
    with pytest.raises(SystemExit) as done:
        cli.run(predict.main)
    assert done.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f'error: {line}')
    assert not (tmp_path / 'work_dirs').exists()


def test_as_a_user_runs_it(checkpoints: dict[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / 'in/x.png')
    (tmp_path / 'in/y.png').write_text('no image')
    whole = write_video(tmp_path / 'whole.mp4').read_bytes()
    (tmp_path / 'in/z.mp4').write_bytes(whole[: len(whole) // 2])
    command = [sys.executable, ROOT / 'tools/predict.py', SEGMENTATION, checkpoints[SEGMENTATION], 'in']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1, result.stderr
    out = 'work_dirs/upernet_cvttiny_shapes/predictions'
    assert result.stdout.splitlines()[-1] == f'inputs: 3, 2 skipped; pictures and JSON files are in {out}'
    assert 'skipped in/y.png: it cannot be read as an image' in result.stderr
    assert 'skipped in/z.mp4: it cannot be read as a video' in result.stderr
    assert 'moov' not in result.stderr, "what FFmpeg's library says of it"
    assert 'images: 100%' in result.stderr
    assert (tmp_path / out / 'label_maps/x.png').exists()


@pytest.mark.parametrize(('number', 'config'), [(0, DETECTION), (1, SEGMENTATION)], ids=['detection', 'segmentation'])
def test_the_documented_inferencers_work(
    number: int, config: Path, checkpoints: dict[Path, Path], tmp_path: Path
) -> None:
    """In a process of its own, as it changes how mmengine reads checkpoints."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/prediction.md').read_text(), re.DOTALL)
    snippets = [block for block in blocks if 'Inferencer' in block]
    assert len(snippets) == 2
    write(tmp_path / 'photo.jpg')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    named = tmp_path / re.search(r"'(work_dirs/.+\.pth)'", snippets[number])[1]
    named.parent.mkdir(parents=True)
    named.symlink_to(checkpoints[config])
    command = [sys.executable, '-c', snippets[number]]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert list((tmp_path / 'predictions/vis').glob('photo.*'))
    assert ('(64, 96)' if config == SEGMENTATION else '[') in result.stdout
