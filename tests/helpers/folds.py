"""Cross-validation on videos: folders of links to the images of a data set, split anew."""

from __future__ import annotations

import shutil
from argparse import ArgumentTypeError
from itertools import groupby
from pathlib import Path
from typing import NamedTuple


class Fold(NamedTuple):
    """A part of each video that is for validation, and not for training.

    It is in one piece: images next to each other show the same scene, and one of them in training would tell the other.

    Attributes:
        number: Counted from 1.
        of: How many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Fold:
        """Read ``K/N``."""
        try:
            fold = cls(*map(int, text.split('/')))
        except (TypeError, ValueError):
            fold = cls(0, 0)
        if not (fold.of > 1 and 1 <= fold.number <= fold.of):
            raise ArgumentTypeError(f'{text!r} is no K/N with 1 <= K <= N and N >= 2')
        return fold

    @property
    def name(self) -> str:
        """Of files and folders."""
        return f'{self.number}of{self.of}'

    def split(self, names: list[str]) -> dict[str, str]:
        """Tell for each image, named after its video up to the first underscore, what it is for."""
        split = {}
        for _, video in groupby(sorted(names), key=lambda name: name.partition('_')[0]):
            images = list(video)
            held_out = range(len(images) * (self.number - 1) // self.of, len(images) * self.number // self.of)
            split |= {name: 'validation' if i in held_out else 'training' for i, name in enumerate(images)}
        return split


def link_fold(root: Path, fold: Fold, out: Path) -> Path:
    """Make a folder in ADE20K's layout with links to all images and annotations of another, split by a fold.

    Args:
        root: The other one.
        fold: Of all of its images, whatever they were for.
        out: Folder for folds; one that is there already is made anew.

    Returns:
        The fold's folder.

    Raises:
        FileNotFoundError: If ``root`` has no images, or one of them no annotation.
    """
    images = {image.stem: image for image in root.resolve().glob('images/*/*.jpg')}
    if not images:
        raise FileNotFoundError(f'{root} has no images/*/*.jpg')
    folder = out.resolve() / fold.name
    shutil.rmtree(folder, ignore_errors=True)
    for name, part in fold.split(list(images)).items():
        image = images[name]
        annotation = root.resolve() / 'annotations' / image.parent.name / f'{name}.png'
        if not annotation.exists():
            raise FileNotFoundError(f'{annotation} is missing')
        for kind, source in (('images', image), ('annotations', annotation)):
            link = folder / kind / part / source.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    return folder
