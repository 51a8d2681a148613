"""Export a trained model, or a part of it, to ONNX, OpenVINO, torch.export or TorchScript.

The ending of the file says the format: .onnx, .xml (OpenVINO), .pt2 (torch.export) or .pt (TorchScript). The file takes
any number and size of images, and is compared with PyTorch at three sizes before it is kept.

Example:
    python tools/export.py configs/upernet_cvt13_ade20k.py iter_160000.pth --out model.onnx
    python tools/export.py configs/maskrcnn_cvt13_fpn_coco.py epoch_12.pth --out detector.onnx
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

from cvt_dense.apis.describe import describe
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
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='.onnx, .xml, .pt2 or .pt file')
    parser.add_argument(
        '--part',
        choices=['backbone', 'neck', 'model'],
        default='model',
        help='export the backbone, the backbone with the neck, or the whole segmentor or detector (default)',
    )
    parser.add_argument(
        '--opset',
        type=int,
        help='of ONNX (default: 23 if the installed ONNX Runtime has all operators of it that are needed, else 20)',
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
    """The part of a model that is to be exported, or a whole segmentor.

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
    model = build(cfg, args.checkpoint)
    metadata = describe(cfg, model, args.part)
    is_detector = args.part == 'model' and cfg.default_scope == 'mmdet'
    if is_detector:
        from cvt_dense.apis.detectors import export_detector  # which segmentation can do without

        export_detector(model, args.out, metadata, args.opset)
    else:
        export(select(cfg, model, args.part), args.out, metadata, args.opset)
    swapped = cfg.model.get('data_preprocessor', {}).get('bgr_to_rgb', False)
    shape = '(1, C, H, W)' if is_detector else '(N, C, H, W)'
    print(f'{args.out}: takes float32 {"RGB" if swapped else "BGR"} images, {shape}, not yet normalised')
    if args.part == 'model' and not is_detector and cfg.model.test_cfg.get('mode') == 'slide':
        print('note: the config evaluates in crops that slide over the image; the file takes what it is given as one')


if __name__ == '__main__':
    launch.run(main)
