from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from small_config import message

from cvt_dense.datasets import paths as data_paths
from cvt_dense.errors import UserError


def detection(root: Path) -> dict[str, Any]:
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/training/'),
    )


def segmentation(root: Path) -> dict[str, Any]:
    return dict(data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='labels'))


def configured(dataset: dict[str, Any] | None, split: str = 'train', **settings: Any) -> Config:
    loader = None if dataset is None else dict(batch_size=1, dataset=dataset)
    return Config({f'{split}_dataloader': loader, 'data_hint': 'make it thus', **settings})


def test_missing_data_is_named_from_the_outside_in(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    cfg = configured(detection(root))
    annotations, images = root / 'annotations' / 'train.json', root / 'images' / 'training'

    def missing() -> str:
        with pytest.raises(UserError) as error:
            data_paths.check_data(cfg, ('train',))
        return message(error)

    assert missing() == f'data root {root} does not exist; make it thus'
    annotations.parent.mkdir(parents=True)
    assert missing() == f'annotation file {annotations} does not exist; make it thus'
    annotations.touch()
    assert missing() == f'img folder {images} does not exist; make it thus'
    images.mkdir(parents=True)
    assert missing() == f'img folder {images} is empty; make it thus'
    (images / '1.jpg').touch()
    data_paths.check_data(cfg, ('train',))


def filled(folder: Path) -> None:
    folder.mkdir()
    (folder / '1.png').touch()


def test_of_segmentation_both_folders_are_needed(tmp_path: Path) -> None:
    filled(tmp_path / 'images')
    cfg = configured(segmentation(tmp_path))
    with pytest.raises(UserError, match=f'seg_map_path folder {tmp_path}/labels does not exist; make it thus'):
        data_paths.check_data(cfg, ('train',))
    filled(tmp_path / 'labels')
    data_paths.check_data(cfg, ('train',))


def test_without_a_hint_the_data_root_is_the_hint(tmp_path: Path) -> None:
    cfg = Config(dict(train_dataloader=dict(dataset=detection(tmp_path / 'data'))))
    with pytest.raises(UserError, match='set data_root in the config'):
        data_paths.check_data(cfg, ('train',))


def test_an_absolute_annotation_file_and_no_data_root_will_do(tmp_path: Path) -> None:
    (tmp_path / 'a.json').touch()
    dataset = dict(ann_file=str(tmp_path / 'a.json'), data_prefix=dict(img=str(tmp_path), seg=None))
    data_paths.check_data(configured(dataset), ('train',))
    data_paths.check_data(configured(dataset | dict(data_root=None, data_prefix=dict())), ('train',))


def test_only_the_splits_that_are_used_are_looked_at(tmp_path: Path) -> None:
    cfg = configured(detection(tmp_path / 'data'), split='val')
    data_paths.check_data(cfg, ('train', 'test'))
    with pytest.raises(UserError):
        data_paths.check_data(cfg, ('train', 'val'))
    data_paths.check_data(configured(None), ('train',))


WRAPPERS: list[Callable[..., dict[str, Any]]] = [
    lambda good, bad: dict(type='RepeatDataset', times=3, dataset=bad),
    lambda good, bad: dict(type='ConcatDataset', datasets=[good, bad]),
    lambda good, bad: dict(type='ConcatDataset', datasets=(bad, good)),
    lambda good, bad: dict(type='MultiImageMixDataset', dataset=dict(type='ConcatDataset', datasets=[good, bad])),
    lambda good, bad: dict(type='ConcatDataset', datasets=[good, dict(type='RepeatDataset', times=2, dataset=bad)]),
]


@pytest.mark.parametrize('wrap', WRAPPERS)
def test_wrapped_datasets_are_looked_into(tmp_path: Path, wrap: Callable[..., dict[str, Any]]) -> None:
    filled(tmp_path / 'images')
    filled(tmp_path / 'labels')
    good, bad = segmentation(tmp_path), detection(tmp_path / 'missing')
    with pytest.raises(UserError, match=f'data root {tmp_path}/missing does not exist'):
        data_paths.check_data(configured(wrap(good, bad)), ('train',))
    data_paths.check_data(configured(wrap(good, good)), ('train',))


def test_a_prefix_may_be_a_list_and_need_not_be_there(tmp_path: Path) -> None:
    for name in ('a', 'b'):
        filled(tmp_path / name)
    dataset = dict(data_root=str(tmp_path), data_prefix=dict(img_path=['a', 'b']))
    data_paths.check_data(configured(dataset), ('train',))
    dataset['data_prefix']['img_path'].append('c')
    with pytest.raises(UserError, match=f'img_path folder {tmp_path}/c does not exist'):
        data_paths.check_data(configured(dataset), ('train',))
    for prefix in (None, {}, dict(img_path=None), dict(img_path='')):
        data_paths.check_data(configured(dict(data_root=str(tmp_path), data_prefix=prefix)), ('train',))


@pytest.mark.parametrize(
    'dataset',
    [
        dict(data_root='s3://bucket/coco/', ann_file='train.json', data_prefix=dict(img='train/')),
        dict(data_root='coco/', backend_args=dict(backend='petrel'), ann_file='train.json', data_prefix=dict(img='x')),
        dict(data_root=None, ann_file='https://example.org/a.json', data_prefix=dict(img='s3://bucket/train')),
    ],
)
def test_what_is_not_on_this_machine_is_left_to_mmengine(dataset: dict[str, Any]) -> None:
    data_paths.check_data(configured(dataset), ('train',))
    local = dataset | dict(data_root='/nowhere', backend_args=dict(backend='local'))
    with pytest.raises(UserError, match='data root /nowhere does not exist'):
        data_paths.check_data(configured(local), ('train',))
