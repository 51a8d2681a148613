"""The golden outputs: weights and inputs drawn by rule, outputs computed once by the authors' implementation."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cvt_dense import CvTTrunk
from cvt_dense.models.cmt import CMTTrunk

DATA = Path(__file__).parents[1] / 'data'
TINY = dict(embed_dims=(16, 48, 96), num_heads=(1, 3, 6), depths=(1, 2, 2))
MODELS = {'tiny': TINY, 'cvt_13': 'cvt-13', 'cvt_21': 'cvt-21', 'cvt_w24': 'cvt-w24'}
#: Of CMT; the pre-training size decides the shape of its tables, and is said where a model is made.
CMT_TINY = dict(
    embed_dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8), depths=(1, 2, 2, 1), mlp_ratio=3.6, stem_channels=8
)


class Classifier(CvTTrunk):
    """The trunk under the reference's classification head, whose parameters are drawn with it."""

    def __init__(self, arch: object, num_classes: int) -> None:
        super().__init__(arch)
        self.norm = nn.LayerNorm(self.arch.embed_dims[-1], eps=1e-5)
        self.head = nn.Linear(self.arch.embed_dims[-1], num_classes)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        maps, cls_token = super().forward(x)
        return maps, self.head(self.norm(cls_token))


class CMTClassifier(CMTTrunk):
    """CMT's trunk under its reference's classification head."""

    def __init__(self, arch: object, num_features: int, num_classes: int, **settings: object) -> None:
        super().__init__(arch, **settings)
        self._fc = nn.Conv2d(self.arch.embed_dims[-1], num_features, 1)
        self._bn = nn.BatchNorm2d(num_features)
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        maps = super().forward(x)
        features = nn.functional.silu(self._bn(self._fc(maps[-1])))
        return maps, self.head(features.mean((2, 3)))


def weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The reference's weight of that name."""
    if key.endswith('num_batches_tracked'):
        return torch.zeros(shape, dtype=torch.long)
    a = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if 'relative_pos' in key:
        pass  # as it is drawn
    elif key.endswith('running_var'):
        a = abs(a) * 0.5 + 0.5
    elif key.endswith(('running_mean', 'bias', 'cls_token')):
        a = a * 0.1
    elif a.ndim == 1:
        a = 1 + 0.1 * a
    else:
        a = a * float(np.prod(shape[1:])) ** -0.5 * 1.5
    return torch.from_numpy(a.astype(np.float32))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The reference's weights for all of a model's parameters and buffers."""
    return {key: weight(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()}


def image(height: int, width: int, batch: int) -> torch.Tensor:
    """The reference's input, ``(batch, 3, height, width)``."""
    rng = np.random.default_rng(height * 10007 + width)
    return torch.from_numpy(rng.standard_normal((batch, 3, height, width)).astype(np.float32))


def classifier(name: str) -> Classifier:
    """A reference model of ``MODELS`` with its weights, in eval mode."""
    model = Classifier(MODELS[name], 10 if name == 'tiny' else 1000)
    model.load_state_dict(weights(model))
    return model.eval()
