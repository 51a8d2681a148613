"""Measure top-1 and top-5 accuracy on ImageNet-1k's validation images, with the transforms of the checkpoint.

DIR holds one folder of images per class, named by WordNet id, as usual. Accuracies as published: docs/checkpoints.md.

Example:
    python tools/validate_imagenet.py --data imagenet/val --model cvt_13
    python tools/validate_imagenet.py --data imagenet/val --model cvt_21.msft_in22k_ft_in1k_384 --checkpoint CvT-21.pth
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import nn
from tqdm import tqdm

import cvt_dense  # noqa: F401  registers the models in timm
from cvt_dense import cli
from cvt_dense.checkpoints import read_checkpoint
from cvt_dense.checkpoints.published import find_published
from cvt_dense.errors import CheckpointError, UserError

#: Patterns of our models' names in timm.
FAMILIES = ['cvt_*', 'cmt_*']


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, metavar='DIR', help='folder of validation images, one folder a class')
    parser.add_argument('--model', default='cvt_13', help='timm model, with or without tag (default: cvt_13)')
    parser.add_argument(
        '--checkpoint', help='whatever init_cfg takes (default: the published weights that the model names)'
    )
    parser.add_argument('--batch-size', type=int, default=64, help='images a batch')
    parser.add_argument('--workers', type=int, default=4, help='data loading processes')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='default: a GPU if any'
    )
    parser.add_argument('--amp', action='store_true', help='compute in bfloat16')
    return parser.parse_args()


def build_model(name: str, checkpoint: str | None) -> nn.Module:
    """A registered model with a head, and the weights of a checkpoint or the published ones.

    Raises:
        UserError: If there is no such model, or its head does not fit.
        CheckpointError: If the weights are not found or do not cover the model.
    """
    if name not in timm.list_models(FAMILIES) and name not in timm.list_pretrained(FAMILIES):
        known = ', '.join(timm.list_pretrained(FAMILIES))
        raise UserError(f'unknown model {name!r}; known are {known}')
    overlay = {}
    if checkpoint:
        published = find_published(checkpoint)
        if published and '.' not in name:
            name = f'{name}.{published.timm_tag}'  # its resolution and transforms
        overlay = dict(pretrained_cfg_overlay=dict(state_dict=dict(read_checkpoint(checkpoint))))
    try:
        return timm.create_model(name, pretrained=True, **overlay)
    except CheckpointError:
        raise
    except RuntimeError as error:  # torch's, for a head that is missing or does not fit
        reason = ' '.join(str(error).split())
        raise UserError(
            f'weights of {name} do not fit: {reason}; give a file of a classifier with --checkpoint'
        ) from error


class Hits:
    """Counts of images, and of those whose class is the first, or among the first five, that the model names."""

    def __init__(self) -> None:
        self.top1 = self.top5 = self.total = 0

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: ``(N, classes)`` logits of images with ``(N,)`` labels."""
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        counts = int(hits[:, 0].sum()), int(hits.sum()), len(labels)
        self.top1, self.top5, self.total = self.top1 + counts[0], self.top5 + counts[1], self.total + counts[2]

    def __str__(self) -> str:
        return f'top-1 {100 * self.top1 / self.total:.2f} %, top-5 {100 * self.top5 / self.total:.2f} %'


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: torch.utils.data.DataLoader, device: torch.device, amp: bool, hits: Hits
) -> None:
    """Count a model's hits, batch by batch."""
    model.eval().to(device)
    progress = tqdm(loader, unit='batch')
    for images, labels in progress:
        labels = labels.to(device)
        with torch.autocast(device.type, torch.bfloat16) if amp else nullcontext():
            logits = model(images.to(device))
        hits.add(logits, labels)
        progress.set_postfix_str(f'top-1 {100 * hits.top1 / hits.total:.2f}')


def main() -> None:
    args = parse_args()
    if args.batch_size < 1 or args.workers < 0:
        raise UserError('--batch-size must be at least 1, and --workers at least 0')
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second is torch's for one built without CUDA
        raise UserError(f'--device {args.device} cannot be used: {str(error).splitlines()[0]}') from error
    if not Path(args.data).is_dir():
        raise UserError(f'data folder {args.data} does not exist; it holds one folder of images per class')
    model = build_model(args.model, args.checkpoint)
    config = resolve_data_config(model=model)
    try:
        dataset = create_dataset('', root=args.data)
    except RuntimeError as error:  # timm's for a folder without images
        raise UserError(f'data folder {args.data} holds no images in folders of their classes') from error
    classes = len(dataset.reader.class_to_idx)
    if classes != model.num_classes:
        raise UserError(f'data folder {args.data} has {classes} classes; the model has {model.num_classes}')
    loader = create_loader(
        dataset,
        input_size=config['input_size'],
        batch_size=args.batch_size,
        interpolation=config['interpolation'],
        mean=config['mean'],
        std=config['std'],
        crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'],
        num_workers=args.workers,
        use_prefetcher=False,
        device=device,
    )
    side = 'x'.join(map(str, config['input_size'][1:]))
    print(f'images of {side} pixels, {config["crop_mode"]} crop of {config["crop_pct"]:.3f}, {config["interpolation"]}')
    hits = Hits()
    try:
        evaluate(model, loader, device, args.amp, hits)
    except KeyboardInterrupt as interrupt:
        if hits.total:
            print(f'{args.model}: partial, after {hits.total} of {len(dataset)} images: {hits}')
        raise cli.stop_of(interrupt) from None
    print(f'{args.model}: {hits} of {len(dataset)} images')


if __name__ == '__main__':
    cli.run(main)
