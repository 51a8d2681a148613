"""Where checkpoints come from: a file, one that comes with the package, or a published one from the Hub."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be had, read or used; its message says why and what to do."""


@dataclass(frozen=True)
class Published:
    """A checkpoint that the authors published.

    Attributes:
        arch: Name of the variant.
        filename: Name of the authors' own file.
        repo: Repository on the Hugging Face Hub; it holds the weights as ``pytorch_model.bin``.
    """

    arch: str
    filename: str
    repo: str


#: By name. "in22k" ones were pre-trained on ImageNet-22k and fine-tuned on ImageNet-1k at the resolution given.
PUBLISHED: dict[str, Published] = {
    'cvt-13-224x224-in1k': Published('cvt-13', 'CvT-13-224x224-IN-1k.pth', 'microsoft/cvt-13'),
    'cvt-13-384x384-in1k': Published('cvt-13', 'CvT-13-384x384-IN-1k.pth', 'microsoft/cvt-13-384'),
    'cvt-13-384x384-in22k': Published('cvt-13', 'CvT-13-384x384-IN-22k.pth', 'microsoft/cvt-13-384-22k'),
    'cvt-21-224x224-in1k': Published('cvt-21', 'CvT-21-224x224-IN-1k.pth', 'microsoft/cvt-21'),
    'cvt-21-384x384-in1k': Published('cvt-21', 'CvT-21-384x384-IN-1k.pth', 'microsoft/cvt-21-384'),
    'cvt-21-384x384-in22k': Published('cvt-21', 'CvT-21-384x384-IN-22k.pth', 'microsoft/cvt-21-384-22k'),
    'cvt-w24-384x384-in22k': Published('cvt-w24', 'CvT-w24-384x384-IN-22k.pth', 'microsoft/cvt-w24-384-22k'),
}

#: Files that come with the package, by name: the demo's backbone (docs/demo.md says how it was made).
SHIPPED: dict[str, Path] = {'cvt-tiny-shapes': Path(__file__).parents[1] / 'weights' / 'cvt-tiny-shapes.safetensors'}


def fetch(checkpoint: str) -> Path:
    """Find a checkpoint: the path of its file, downloaded to the Hub's cache if it is a published one's name.

    Raises:
        CheckpointError: If there is no such file and no such name, or the download fails.
    """
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path
    if checkpoint in SHIPPED:
        return SHIPPED[checkpoint]
    if checkpoint not in PUBLISHED:
        raise CheckpointError(
            f'checkpoint {checkpoint!r} is neither a file nor a known name; known are: '
            f'{", ".join([*PUBLISHED, *SHIPPED])}'
        )
    published = PUBLISHED[checkpoint]
    try:
        return Path(hf_hub_download(published.repo, 'pytorch_model.bin'))
    except Exception as error:  # versions of huggingface_hub differ in their HTTP library, and so in its errors
        raise CheckpointError(
            f'checkpoint {checkpoint!r} could not be downloaded from {published.repo} on the Hugging Face Hub '
            f'({_reason(error)}). Without network, either give a local copy of {published.filename}: '
            f'--cfg-options model.backbone.init_cfg.checkpoint=PATH, or train from scratch: '
            f'--cfg-options model.backbone.init_cfg=None'
        ) from error


def read(path: Path) -> Mapping[str, Any]:
    """Read a ``.safetensors`` file, or one that ``torch.save`` wrote; never runs code that a file carries.

    Raises:
        CheckpointError: If the file is damaged, is no checkpoint, or holds more than plain data.
    """
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'checkpoint {path} was refused: it is damaged, or holds more than plain weights ({_reason(error)})'
        ) from error
    except Exception as error:  # what a damaged file makes a reader stumble over can be anything
        raise CheckpointError(
            f'checkpoint {path} is damaged, incomplete or no checkpoint: {type(error).__name__}: {_reason(error)}'
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'checkpoint {path} holds a {type(content).__name__} where a state dict was expected')
    return content


def _reason(error: Exception) -> str:
    """The line of an error's message that says what happened; torch puts advice before it."""
    text = str(error).rpartition('WeightsUnpickler error:')[2].strip() or type(error).__name__
    return text.splitlines()[0]
