"""What a config says of the data that its model is tested on: how an image is prepared, and what the classes are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from ..engine.failures import cannot_be_built
from ..errors import UserError
from ..registry import type_name

#: Numbers up to 90 that none of COCO's 80 classes has.
UNUSED_BY_COCO = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


@contextmanager
def one_line_for_mistakes() -> Iterator[None]:
    """Turn what registries and constructors raise for wrong settings into a :class:`UserError`."""
    try:
        yield
    except Exception as error:  # toolkits assert, too
        raise cannot_be_built('the config', error) from error


def tested_dataset(cfg: Config) -> ConfigDict:
    """The dataset of the config that has the test pipeline, out of those that wrap it.

    Raises:
        UserError: If there is none.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset:
        inner = dataset.get('dataset') or dataset.get('datasets')
        if not inner:
            raise UserError('the config has no test_dataloader.dataset.pipeline, which says how to prepare an image')
        dataset = inner if isinstance(inner, dict) else inner[0]
    return dataset


def inference_steps(dataset: ConfigDict) -> list[ConfigDict]:
    """The test pipeline without what reads the truth; its first step reads the image.

    Raises:
        UserError: If it is no pipeline that begins with reading an image file.
    """
    steps = [step for step in dataset.pipeline if 'Annotations' not in type_name(step)]
    if not steps or not type_name(steps[0]).endswith('LoadImageFromFile'):
        raise UserError("the config's test pipeline must begin with LoadImageFromFile")
    return steps


def metainfo_of(model: nn.Module, dataset: ConfigDict, scope: str) -> Mapping[str, Any]:
    """Classes and palette: those in the checkpoint that a model was loaded from, or else those of a data set.

    Raises:
        UserError: If the data set cannot be built.
    """
    meta = {key.lower(): value for key, value in (getattr(model, 'dataset_meta', None) or {}).items()}
    if 'classes' in meta:
        return meta
    with DefaultScope.overwrite_default_scope(scope), one_line_for_mistakes():
        return DATASETS.build(dict(dataset, lazy_init=True)).metainfo


def category_ids(classes: Sequence[str], detects: bool) -> list[int]:
    """Numbers of the classes: labels for segmentation; for detection COCO's own for its classes, else from 1 on."""
    if not detects:
        return list(range(len(classes)))
    from mmdet.datasets import CocoDataset  # not needed for segmentation

    if tuple(classes) == CocoDataset.METAINFO['classes']:
        return [i for i in range(1, 91) if i not in UNUSED_BY_COCO]
    return list(range(1, len(classes) + 1))
