"""A model of five weights on seventeen numbers, for runs of the engine that take milliseconds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from torch import nn


@DATASETS.register_module()
class Numbers(BaseDataset):
    """Seventeen numbers, half of them of images that are wider than high."""

    def load_data_list(self) -> list[dict[str, Any]]:
        return [dict(value=float(i), width=10 + i % 2, height=11 - i % 2) for i in range(17)]


@TRANSFORMS.register_module()
class AddNoise:
    """An augmentation that draws from all three generators."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        noise = [random.random(), np.random.rand(), torch.rand(()).item()]
        return dict(inputs=torch.tensor([results['value'], *noise]))


@MODELS.register_module()
class Regressor(BaseModel):
    """Draws at random in the forward pass, and remembers what it was given."""

    seen: list[list[float]] = []

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, inputs: torch.Tensor, mode: str = 'loss') -> dict[str, torch.Tensor]:
        inputs = torch.stack(list(inputs)) if isinstance(inputs, (list, tuple)) else inputs
        Regressor.seen.append(inputs[:, 0].tolist())
        dropped = nn.functional.dropout(self.linear(inputs / 20), 0.5)
        return dict(loss=(dropped - torch.randn(()) - random.random() - np.random.rand()).square().mean())


def config(work_dir: Path, by_epoch: bool, workers: int, sampler: str = 'DefaultSampler', **settings: Any) -> Config:
    loop = dict(type='EpochBasedTrainLoop', max_epochs=3) if by_epoch else dict(type='IterBasedTrainLoop', max_iters=15)
    return Config(
        dict(
            model=dict(type='Regressor'),
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=3,
                num_workers=workers,
                persistent_workers=workers > 0,
                sampler=dict(type=sampler, shuffle=True),
                dataset=dict(type='Numbers', pipeline=[dict(type='AddNoise')]),
                **settings,
            ),
            train_cfg=loop,
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
            param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=12),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=2)),
            custom_hooks=[dict(type='EMAHook')],
            randomness=dict(seed=3),
            log_level='ERROR',
            default_scope='mmengine',
            experiment_name=f'{work_dir.name}_{random.random()}',
        )
    )
