"""The config.json that ``from_pretrained`` of Hugging Face's transformers reads beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..models.cvt.arch import Arch
from .formats import StateDict


def transformers_config(tensors: StateDict, arch: Arch, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Describe a CvT for transformers: ``CvtForImageClassification`` if it has a head, else ``CvtModel``.

    Args:
        tensors: Its weights, under the trunk's names.
        arch: Their architecture, a known variant's: one ``mlp_ratio`` and one ``kv_stride``.
        labels: Names of the head's classes; without, they are numbered, as transformers does it.
    """
    stem, head = tensors['stage0.patch_embed.proj.weight'], tensors.get('head.weight')
    stages = arch.num_stages
    config: dict[str, Any] = dict(
        architectures=['CvtModel' if head is None else 'CvtForImageClassification'],
        model_type='cvt',
        torch_dtype=str(stem.dtype).removeprefix('torch.'),
        num_channels=stem.shape[1],
        patch_sizes=[7] + [3] * (stages - 1),
        patch_stride=[4] + [2] * (stages - 1),
        patch_padding=[2] + [1] * (stages - 1),
        embed_dim=list(arch.embed_dims),
        num_heads=list(arch.num_heads),
        depth=list(arch.depths),
        mlp_ratio=[float(arch.mlp_ratio)] * stages,
        stride_kv=[arch.kv_stride] * stages,
        cls_token=[False] * (stages - 1) + [True],
        qkv_bias=[True] * stages,
        qkv_projection_method=['dw_bn'] * stages,
        kernel_qkv=[3] * stages,
        padding_kv=[1] * stages,
        padding_q=[1] * stages,
        stride_q=[1] * stages,
        drop_rate=[0.0] * stages,
        attention_drop_rate=[0.0] * stages,
        drop_path_rate=[0.0] * (stages - 1) + [0.1],
    )
    if head is not None:
        config |= _labels(head, labels)
    return config


def _labels(head: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    names = list(labels) or [f'LABEL_{index}' for index in range(len(head))]
    return dict(
        id2label={str(index): name for index, name in enumerate(names)},
        label2id={name: index for index, name in enumerate(names)},
    )
