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
