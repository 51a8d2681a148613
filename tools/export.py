"""Export a trained model, or a part of it, to ONNX, torch.export or TorchScript, for any number and size of images.

The ending of the file says the format: .onnx, .pt2 (torch.export) or .pt (TorchScript). The file is compared with
PyTorch at three sizes before it is kept.

Example:
    python tools/export.py configs/upernet_cvt13_ade20k.py iter_160000.pth --out model.onnx
    python tools/export.py configs/maskrcnn_cvt13_fpn_coco.py epoch_12.pth --part neck --out features.onnx
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cvt_dense import cli

cli.need('mmengine')  # before the imports that would end in a stack trace

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from torch import nn

from cvt_dense.apis.export import Exportable, export
from cvt_dense.engine import launch
from cvt_dense.engine.config import load_config
from cvt_dense.engine.devices import hide_gpu_without_operators
from cvt_dense.engine.model import build_model
from cvt_dense.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint', nargs='?', help='checkpoint that training wrote (default: the backbone as training starts)'
    )
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='.onnx, .pt2 or .pt file to write')
    parser.add_argument(
        '--part',
        choices=['backbone', 'neck', 'segmentor'],
        default='segmentor',
        help='export the backbone, the backbone with the neck, or a whole segmentor (default)',
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    return parser.parse_args()


def build(cfg: Config, checkpoint: str | None) -> nn.Module:
    """Build a config's model with its trained weights, or without a checkpoint with the backbone as training starts.

    Raises:
        UserError: If the config cannot be built, or the checkpoint does not cover its model.
        CheckpointError: If weights cannot be read.
    """
    model = build_model(cfg, checkpoint)
    if checkpoint is None:
        print('note: no checkpoint is given: the backbone is as training starts, the rest random', file=sys.stderr)
        MMLogger.get_current_instance().setLevel('WARNING')  # init_weights lists every parameter
        model.backbone.init_weights()
    return model.eval()


def select(cfg: Config, model: nn.Module, part: str) -> Exportable:
    """The part of a model that is to be exported.

    Raises:
        UserError: If the model has no such part.
    """
    preprocessor = cfg.model.get('data_preprocessor') or {}
    normalization = {key: preprocessor[key] for key in ('mean', 'std') if preprocessor.get(key)}
    neck = getattr(model, 'neck', None)
    if part == 'backbone':
        return Exportable(model.backbone, **normalization)
    if part == 'neck':
        if neck is None:
            raise UserError(f'{type(model).__name__} has no neck: --part backbone')
        return Exportable(model.backbone, neck, **normalization)
    if cfg.default_scope == 'mmdet':
        raise UserError(
            f'a whole {type(model).__name__} is not exported: take --part neck, or --part backbone, and see '
            'docs/export.md for the rest of it'
        )
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead  # which detection can do without

    head = getattr(model, 'decode_head', None)
    if not isinstance(head, BaseDecodeHead):
        raise UserError(
            f'{type(head).__name__} does not give logits for each pixel by itself, and is not exported: --part backbone'
        )
    return Exportable(model.backbone, neck, head, align_corners=head.align_corners, **normalization)


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    hide_gpu_without_operators(cfg)
    torch.manual_seed(0)
    export(select(cfg, build(cfg, args.checkpoint), args.part), args.out)
    swapped = cfg.model.get('data_preprocessor', {}).get('bgr_to_rgb', False)
    print(f'{args.out}: takes float32 {"RGB" if swapped else "BGR"} images, (N, C, H, W), not yet normalised')
    if args.part == 'segmentor' and cfg.model.test_cfg.get('mode') == 'slide':
        print('note: the config evaluates in crops that slide over the image; the file takes what it is given as one')


if __name__ == '__main__':
    launch.run(main)
