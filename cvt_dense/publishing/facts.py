"""What is known about a run, of its config, its checkpoint and its logs, for whoever reads or lists the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..registry import each_evaluator, pretrained_sources, type_name
from .logs import Logs, is_main
from .weights import without_commit

#: Names on the Hub of data sets, by the toolkits' classes for them.
_HUB_DATASETS = {'ADE20KDataset': 'ade20k', 'CityscapesDataset': 'cityscapes'}
#: The toolkits, by the scope of their registries.
_LIBRARIES = {'mmdet': 'mmdetection', 'mmseg': 'mmsegmentation', 'mmpretrain': 'mmpretrain'}


@dataclass(frozen=True)
class Facts:
    """What is known about a trained model; None, or nothing, for what is not.

    Attributes:
        name: Of its config.
        library: The toolkit that it is of.
        task: As the Hub calls it.
        parts: What it is made of, in words.
        classes: Names of its classes.
        dataset: Name of the data set's folder, or of its class.
        hub_dataset: Name of the data set on the Hub.
        iteration: How many iterations it was trained for.
        metrics: What the run's evaluation of this checkpoint found.
        training: How it was trained, by what is told, in order.
        logs: Of the run.
    """

    name: str
    library: str | None
    task: str | None
    parts: str
    classes: tuple[str, ...]
    dataset: str | None
    hub_dataset: str | None
    iteration: int | None
    metrics: dict[str, float]
    training: dict[str, str]
    logs: Logs

    @property
    def main_metrics(self) -> dict[str, float]:
        """The metrics of the whole data set, without those of its classes."""
        return {name: value for name, value in self.metrics.items() if is_main(name)}


def facts_of(cfg: Config, name: str, content: Mapping[str, Any], model: nn.Module, logs: Logs) -> Facts:
    """Collect what is known.

    Args:
        cfg: Config of the run.
        name: Of its file, without suffix.
        content: Of the checkpoint.
        model: Built, with the checkpoint's weights.
        logs: Of the run.
    """
    meta = content.get('meta') or {}
    classes = tuple((meta.get('dataset_meta') or {}).get('classes') or ())
    dataset = _dataset(cfg, 'train')
    return Facts(
        name=name,
        library=_LIBRARIES.get(cfg.default_scope),
        task=_task(cfg),
        parts=_parts(cfg, model),
        classes=classes,
        dataset=_place(dataset) or type_name(dataset) or None,
        hub_dataset=_hub_dataset(dataset, classes),
        iteration=meta.get('iter'),
        metrics=logs.metrics_at(meta.get('iter')),
        training=dict(_training(cfg, content, logs)),
        logs=logs,
    )


def _task(cfg: Config) -> str | None:
    if cfg.default_scope == 'mmdet':
        asked = [evaluator.get('metric') or () for evaluator in each_evaluator(cfg.get('test_evaluator'))]
        has_masks = any('segm' in ([metric] if isinstance(metric, str) else metric) for metric in asked)
        return 'image-segmentation' if has_masks else 'object-detection'
    return {'mmseg': 'image-segmentation', 'mmpretrain': 'image-classification'}.get(cfg.default_scope)


def _parts(cfg: Config, model: nn.Module) -> str:
    backbone = cfg.model.get('backbone')
    if not backbone:
        return type(model).__name__
    arch = backbone.get('arch')
    variant = f' ({arch})' if isinstance(arch, str) else ''
    return f'{type(model).__name__} with {type_name(backbone)}{variant}'


def _dataset(cfg: Config, split: str) -> Mapping[str, Any]:
    """The part of a config that says where data are, out of what wraps it."""
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    while inner := dataset.get('dataset') or dataset.get('datasets'):
        dataset = inner if isinstance(inner, Mapping) else inner[0]
    return dataset


def _place(dataset: Mapping[str, Any]) -> str:
    """The last part of its path: the others are of the machine that it was on."""
    return Path(dataset.get('data_root') or dataset.get('ann_file') or '').name


def _hub_dataset(dataset: Mapping[str, Any], classes: tuple[str, ...]) -> str | None:
    kind = type_name(dataset)
    if kind == 'CocoDataset' and len(classes) == 80 and not (dataset.get('metainfo') or {}).get('classes'):
        return 'coco'
    return _HUB_DATASETS.get(kind)


def _training(cfg: Config, content: Mapping[str, Any], logs: Logs) -> list[tuple[str, str]]:
    meta, environment = content.get('meta') or {}, logs.environment
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    rate = optimizer.get('lr') if logs.rate is None else logs.rate
    sources = ', '.join(map(str, pretrained_sources(cfg.model.get('backbone'))))
    versions = [f'{name} {environment[name]}' for name in ('torch', 'python') if name in environment]
    if 'mmengine_version' in meta:
        versions.append(f'mmengine {without_commit(meta["mmengine_version"])}')
    rows = {
        'iterations': meta.get('iter'),
        'epochs': meta.get('epoch') or None,
        'batch size': _batch(cfg, environment.get('processes')),
        'optimizer': type_name(optimizer) or None,
        'learning rate': None if rate is None else f'{rate:.3g}',
        'weights averaged (EMA)': 'yes' if 'ema_state_dict' in content else None,
        'backbone from': sources or None,
        'seed': meta.get('seed'),
        'time of the run, with evaluations': None if logs.duration is None else str(logs.duration),
        'device': environment.get('gpu'),
        'versions': ', '.join(versions) or None,
    }
    return [(name, str(value)) for name, value in rows.items() if value is not None]


def _batch(cfg: Config, processes: str | None) -> str | None:
    """The images of a step, as far as it is known in how many processes it was made."""
    each = (cfg.get('train_dataloader') or {}).get('batch_size')
    if each is None or processes is None:
        return None if each is None else f'{each} in each process'
    together = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    parts = f'{each}{f" x {processes} processes" if processes != "1" else ""}'
    parts += f' x {together} accumulated' if together > 1 else ''
    total = each * int(processes) * together
    return str(total) if parts == str(total) else f'{total} ({parts})'
