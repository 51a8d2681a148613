from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.fileio import BaseStorageBackend, register_backend
from PIL import Image
from robust import SIDE, annotation, picture

from cvt_dense.datasets.check import build_dataset, inspect_dataset
from cvt_dense.datasets.paths import check_data
from cvt_dense.datasets.reading import CheckedImage
from cvt_dense.errors import UserError

pytest.importorskip('mmseg')


def encoded(image: Image.Image, kind: str = 'PNG', **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(picture(size=(48, 64)), 'JPEG', exif=exif)


class Memory(BaseStorageBackend):
    """Files by their addresses, mem://…; of all tests, since mmengine keeps its backends."""

    files: ClassVar[dict[str, bytes]] = {}

    def get(self, filepath: str) -> bytes:
        return self.files[str(filepath)]

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        return self.files[filepath].decode(encoding)

    @contextmanager
    def get_local_path(self, filepath: str) -> Iterator[str]:
        with tempfile.NamedTemporaryFile() as copy:
            Path(copy.name).write_bytes(self.get(filepath))
            yield copy.name

    def join_path(self, filepath: str, *filepaths: str) -> str:
        return '/'.join([filepath, *filepaths])

    def list_dir_or_file(self, dir_path: str, *_: Any, **__: Any) -> Iterator[str]:
        return iter([path[len(dir_path) + 1 :] for path in self.files if path.startswith(dir_path + '/')])


@pytest.fixture
def stored() -> dict[str, bytes]:
    """What mem:// holds."""
    register_backend('mem', Memory, prefixes='mem', force=True)
    Memory.files.clear()
    return Memory.files


def settings(**changes: Any) -> dict[str, Any]:
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    prefix = dict(img_path='images', seg_map_path='labels')
    names = dict(type='BaseSegDataset', img_suffix='.jpg', metainfo=dict(classes=('a', 'b')))
    return dict(names, data_root='mem://data', data_prefix=prefix, pipeline=pipeline) | changes


def inspect(dataset: dict[str, Any]) -> str:
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    check_data(cfg, ('train',))
    return inspect_dataset(build_dataset(cfg.train_dataloader.dataset, 'mmseg'))


def test_files_elsewhere_are_read_and_checked_as_those_here(stored: dict[str, bytes]) -> None:
    stored['mem://data/images/1.jpg'] = whole = encoded(picture(), 'JPEG')
    stored['mem://data/labels/1.png'] = encoded(Image.fromarray(np.eye(SIDE, dtype=np.uint8)))
    assert inspect(settings()).startswith('1 images, 1 of them opened')
    stored['mem://data/images/1.jpg'] = whole[: len(whole) // 2]
    with pytest.raises(UserError, match=r'image mem://data/images/1.jpg is (cut off|damaged)'):
        inspect(settings())
    stored['mem://data/images/1.jpg'] = whole
    stored['mem://data/labels/1.png'] = encoded(Image.fromarray(np.full((SIDE, SIDE), 257, np.uint16)))
    with pytest.raises(UserError, match=r'label map mem://data/labels/1.png has the value 257'):
        inspect(settings())
    del stored['mem://data/labels/1.png']
    with pytest.raises(UserError, match=r'label map mem://data/labels/1.png cannot be read: KeyError'):
        inspect(settings())


def test_an_annotation_file_elsewhere_is_called_by_its_address(stored: dict[str, bytes]) -> None:
    pytest.importorskip('mmdet')
    image = dict(id=1, file_name='1.png', width=SIDE, height=SIDE)
    content = dict(images=[image], annotations=[annotation(1, 1)], categories=[dict(id=13, name='a')])
    stored['mem://data/a.json'] = json.dumps(content).encode()
    stored['mem://data/images/1.png'] = encoded(picture())
    names = dict(type='mmdet.CocoDataset', ann_file='a.json', metainfo=dict(classes=('a',)))
    coco = names | dict(
        data_root='mem://data', data_prefix=dict(img='images'), pipeline=[dict(type='LoadImageFromFile')]
    )
    assert inspect(coco) == '1 images, 1 of them opened'
    for broken, told in (
        (b'{', 'is not valid JSON'),
        (b'{}', "is not in COCO's format"),
        (json.dumps(content | dict(images=[image | dict(width=0)])).encode(), r'images\[0\].width is 0'),
    ):
        stored['mem://data/a.json'] = broken
        with pytest.raises(UserError, match=f'^mem://data/a.json:? {told}'):
            inspect(coco)


@pytest.mark.parametrize(('own', 'loader'), [(True, False), (False, True)])
def test_what_0_is_has_to_be_said_alike(stored: dict[str, bytes], own: bool, loader: bool) -> None:
    stored['mem://data/images/1.jpg'] = encoded(picture(), 'JPEG')
    stored['mem://data/labels/1.png'] = encoded(Image.fromarray(np.ones((SIDE, SIDE), np.uint8)))
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=loader)]
    with pytest.raises(
        UserError, match=f'is {own} in BaseSegDataset .* set pipeline.1.reduce_zero_label of .* to {own}'
    ):
        inspect(settings(reduce_zero_label=own, pipeline=steps))
    steps[1]['reduce_zero_label'] = own  # as advised
    assert inspect(settings(reduce_zero_label=own, pipeline=steps)).startswith('1 images')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_is_named_where_it_turns_the_image(orientation: int, stored: dict[str, bytes]) -> None:
    stored['mem://1.jpg'] = turned(orientation)
    size = (64, 48) if orientation > 4 else (48, 64)
    step = CheckedImage(lambda results: results | dict(ori_shape=size[::-1]), may_skip=False)
    with pytest.raises(UserError) as error:
        step(dict(img_path='mem://1.jpg', width=size[1], height=size[0]))
    assert ('EXIF' in str(error.value)) == (orientation > 4)


def test_exif_that_the_loader_does_not_obey(stored: dict[str, bytes]) -> None:
    stored['mem://1.jpg'] = turned(6)
    step = CheckedImage(lambda results: results | dict(ori_shape=(64, 48)), may_skip=False)
    with pytest.raises(UserError, match='is 48x64, not turned as its EXIF orientation says; in the annotation'):
        step(dict(img_path='mem://1.jpg', width=64, height=48))
    with pytest.raises(UserError, match='is 48x64; in the annotation'):  # which no turn explains
        step(dict(img_path='mem://1.jpg', width=64, height=47))


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        (None, 'is missing or cannot be fetched'),
        (b'', 'is empty'),
        (b'hello', 'is damaged'),
        (encoded(picture(), 'JPEG')[:999], 'is cut off'),
        (encoded(picture()), 'cannot be read'),
    ],
    ids=['missing', 'empty', 'text', 'cut', 'whole'],
)
def test_what_a_loader_keeps_to_itself_is_looked_at(content: bytes | None, told: str, tmp_path: Path) -> None:
    """With ``ignore_empty`` mmcv's loader returns None, whatever the error."""
    path = tmp_path / '1.jpg'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f'1.jpg {told}; replace it, or remove it from the data$'):
        CheckedImage(lambda _: None, may_skip=False)(dict(img_path=str(path)))


def test_damage_is_named_where_it_was_looked_at(tmp_path: Path) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError('no such decoder')

    path = tmp_path / '1.png'
    for content, told in ((encoded(picture()), 'cannot be read'), (encoded(picture())[:99], 'is damaged')):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f'1.png {told}: RuntimeError: no such decoder'):
            CheckedImage(fail, may_skip=False)(dict(img_path=str(path)))
