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
    option = '--cfg-options train_dataloader.dataset'

    def missing() -> str:
        with pytest.raises(UserError) as error:
            data_paths.check_data(cfg, ('train',))
        return message(error)

    assert missing() == f'data root {root} does not exist; make it thus'
    annotations.parent.mkdir(parents=True)
    assert missing() == f'annotation file {annotations} does not exist; make it thus, or {option}.ann_file=FILE'
    annotations.touch()
    assert missing() == f'img folder {images} does not exist; make it thus, or {option}.data_prefix.img=FOLDER'
    images.mkdir(parents=True)
    assert missing() == f'img folder {images} is empty; make it thus, or {option}.data_prefix.img=FOLDER'
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
    with pytest.raises(UserError, match=r'--cfg-options train_dataloader\.dataset\.data_root=FOLDER'):
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


def test_what_is_elsewhere_is_left_to_mmengine(tmp_path: Path) -> None:
    data_paths.check_data(configured(segmentation(tmp_path) | dict(data_root='s3://bucket/data')), ('train',))
    missing = segmentation(tmp_path / 'missing')
    data_paths.check_data(configured(missing | dict(backend_args=dict(backend='petrel'))), ('train',))
    steps = [dict(type='LoadImageFromFile', backend_args=dict(backend='petrel'))]
    data_paths.check_data(configured(missing | dict(pipeline=steps)), ('train',))
    with pytest.raises(UserError, match='does not exist'):
        data_paths.check_data(configured(missing | dict(backend_args=dict(backend='local'))), ('train',))


def test_each_of_several_folders_is_looked_for(tmp_path: Path) -> None:
    filled(tmp_path / 'a')
    prefix = dict(img_path=['a/', 'b/'])
    with pytest.raises(UserError, match=f'img_path folder {tmp_path}/b does not exist'):
        data_paths.check_data(configured(dict(data_root=str(tmp_path), data_prefix=prefix)), ('train',))
    filled(tmp_path / 'b')
    data_paths.check_data(configured(dict(data_root=str(tmp_path), data_prefix=prefix)), ('train',))


def test_a_data_root_that_nothing_is_below_need_not_exist(tmp_path: Path) -> None:
    filled(tmp_path / 'images')
    absolute = dict(data_root='data/none', data_prefix=dict(img=str(tmp_path / 'images')))
    data_paths.check_data(configured(absolute), ('train',))


@pytest.mark.parametrize('value', [None, {}, dict(img=''), dict(img=None)])
def test_folders_may_be_left_out(tmp_path: Path, value: Any) -> None:
    filled(tmp_path / 'images')
    data_paths.check_data(configured(dict(data_root=str(tmp_path), data_prefix=value)), ('train',))


@pytest.mark.parametrize(
    'wrong', [dict(data_root=['a']), dict(data_prefix='a'), dict(ann_file=1), dict(data_prefix=dict(img=1))]
)
def test_what_is_no_path_is_a_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match='it has to be'):
        data_paths.check_data(configured(wrong), ('train',))


def test_a_folder_that_may_not_be_read_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / 'images')

    def refuse(path: Path) -> None:
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(Path, 'iterdir', refuse)  # root, as which tests may run, may read all
    with pytest.raises(UserError, match=r'data root .* cannot be read: PermissionError: .*Permission denied'):
        data_paths.check_data(configured(dict(data_root=str(tmp_path))), ('train',))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r'annotation file a+ cannot be read: OSError'):
        data_paths.check_data(configured(dict(ann_file='a' * 999)), ('train',))
