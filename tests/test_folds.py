"""The folds of videos that tests/helpers/compare_from_scratch.py trains on."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from folds import Fold, link_fold

NAMES = [f'{video}_{i:03}' for video, count in (('a', 7), ('b', 10)) for i in range(count)]


def test_each_image_is_held_out_once_and_beside_its_neighbours() -> None:
    held_out = []
    for number in range(1, 4):
        split = Fold(number, 3).split(NAMES[::-1])
        assert set(split) == set(NAMES)
        part = [name for name in NAMES if split[name] == 'validation']
        for video in 'ab':
            places = [NAMES.index(name) for name in part if name.startswith(video)]
            assert places == list(range(places[0], places[0] + len(places)))
        held_out += part
    assert sorted(held_out) == sorted(NAMES)


def test_a_fold_is_a_folder_of_links(tmp_path: Path) -> None:
    for kind, suffix in (('images', '.jpg'), ('annotations', '.png')):
        for i, name in enumerate(NAMES):
            file = tmp_path / 'data' / kind / ('validation' if i % 3 else 'training') / (name + suffix)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)
    for number in (1, 2, 2):
        folder = link_fold(tmp_path / 'data', Fold(number, 2), tmp_path / 'folds')
        for kind, suffix in (('images', '.jpg'), ('annotations', '.png')):
            for part in ('training', 'validation'):
                wanted = {name for name, p in Fold(number, 2).split(NAMES).items() if p == part}
                assert {file.read_text() for file in (folder / kind / part).iterdir()} == wanted
                assert {file.name for file in (folder / kind / part).iterdir()} == {name + suffix for name in wanted}
    (tmp_path / 'data/annotations/training/a_000.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'a_000\.png is missing'):
        link_fold(tmp_path / 'data', Fold(1, 2), tmp_path / 'folds')
    with pytest.raises(FileNotFoundError, match='has no images'):
        link_fold(tmp_path / 'elsewhere', Fold(1, 2), tmp_path / 'folds')


def test_it_is_written_as_one_of_how_many() -> None:
    assert Fold.parse('2/5') == Fold(2, 5)


@pytest.mark.parametrize('text', ['', '2', '0/5', '6/5', '1/1', '1/5/5', 'a/5', '-1/5'])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match='is no K/N'):
        Fold.parse(text)
