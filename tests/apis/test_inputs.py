"""Finding inputs, and naming what is written about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvt_dense.apis.inputs import find_inputs, name_outputs
from cvt_dense.errors import UserError


def test_numbered_names_avoid_files_that_have_such_a_name() -> None:
    paths = [Path(name) for name in ('d/x.jpg', 'd/x-2.jpg', 'd/x.png', 'd/y.z.png')]
    assert name_outputs(paths) == ['x', 'x-2', 'x-3', 'y.z']


def test_inputs_that_name_nothing_are_named(tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty/notes.txt').touch()
    for pattern, message in (
        ('empty', "has no images or videos in it; for its subfolders give '"),
        ('nowhere.jpg', 'nowhere.jpg does not exist'),
        ('*.jpg', 'no image or video matches'),
        ('empty/*', 'no image or video matches'),
    ):
        with pytest.raises(UserError, match=message.replace('*', r'\*')):
            find_inputs([str(tmp_path / pattern)])
    brackets = tmp_path / 'a[1].png'
    brackets.touch()
    assert find_inputs([str(brackets)]) == [brackets]
    odd = tmp_path / 'image.without_known_suffix'
    odd.touch()
    assert find_inputs([str(odd), str(odd)]) == [odd]


def test_of_a_folder_images_and_videos_are_taken_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('b.JPG', 'c.Mp4', 'a.png', '.hidden.png', 'notes.txt'):
        (tmp_path / name).touch()
    (tmp_path / 'folder.png').mkdir()
    assert [path.name for path in find_inputs([str(tmp_path)])] == ['a.png', 'b.JPG', 'c.Mp4']
    monkeypatch.setenv('HOME', str(tmp_path))
    assert find_inputs(['~/a.png']) == [tmp_path / 'a.png']
    (tmp_path / 'folder.png' / 'd.png').touch()
    every = find_inputs([f'{tmp_path}/**', str(tmp_path / 'a.png')])
    assert [path.relative_to(tmp_path).as_posix() for path in every] == ['a.png', 'b.JPG', 'c.Mp4', 'folder.png/d.png']


def test_names_keep_the_folders_below_what_all_have_in_common() -> None:
    paths = [Path(name) for name in ('d/a/x.jpg', 'd/b/x.jpg', 'd/b/X.png', 'd/c/X.jpg', 'd/c/x.png')]
    assert name_outputs(paths) == ['a/x', 'b/x', 'b/X-2', 'c/X', 'c/x-2']
