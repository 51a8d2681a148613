"""Measure top-1 and top-5 accuracy on ImageNet-1k's validation images, with the transforms of the checkpoint.

DIR holds one folder of images per class, named by WordNet id, as usual, or by the class's index, as in ImageNet-V2.
Accuracies as published: docs/checkpoints.md.

Example:
    python tools/validate_imagenet.py --data imagenet/val --model cvt_13
    python tools/validate_imagenet.py --data imagenet/val --model cvt_13 --real-labels
    python tools/validate_imagenet.py --data imagenetv2-matched-frequency-format-val --model cvt_13
    python tools/validate_imagenet.py --data imagenet/val --model cvt_21.msft_in22k_ft_in1k_384 --checkpoint CvT-21.pth
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import re
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
#: Images that ImageNet-1k has for validation, and ReaL has labels of.
VALIDATION_IMAGES = 50000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, metavar='DIR', help='folder of validation images, one folder a class')
    parser.add_argument('--model', default='cvt_13', help='timm model, with or without tag (default: cvt_13)')
    parser.add_argument(
        '--checkpoint', help='whatever init_cfg takes (default: the published weights that the model names)'
    )
    parser.add_argument(
        '--real-labels',
        metavar='FILE',
        nargs='?',
        const='',
        help="count by the ReaL labels (arXiv 2006.07159) too: their real.json; without FILE, timm's copy of it",
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


def classes_of(names: Collection[str], folder: str) -> tuple[dict[str, int] | None, str]:
    """Which class each folder is of.

    ImageNet's folders have WordNet ids, and the order of their names is that of the classes. ImageNet-V2's have the
    index of the class, from 0 on; whoever sorts these as text takes folder 10 for class 2.

    Args:
        names: Of the folders.
        folder: That they lie in, for messages.

    Returns:
        The index of each folder's class, None for the order of the names; and in words which of the two it is.

    Raises:
        UserError: If only some of the names are numbers, or the numbers are not 0, 1, 2 and so on.
    """
    numbers = {name: int(name) for name in names if name.isascii() and name.isdigit()}
    if not numbers:
        return None, f'{len(names)} folders, in the order of their names'
    last = len(names) - 1
    if len(numbers) < len(names):
        other = min(set(names) - set(numbers))
        raise UserError(
            f'data folder {folder} has folders named by numbers, such as {min(numbers)}, and others, such as '
            f'{other or "the data folder itself"}; name all by the index of the class, or all by the WordNet id'
        )
    if sorted(numbers.values()) != list(range(len(names))):
        raise UserError(
            f'data folder {folder} has {len(names)} folders named by numbers, which are not 0 to {last} but '
            f'{min(numbers.values())} to {max(numbers.values())}; name each by the index of its class, from 0 on'
        )
    return numbers, f'{len(names)} folders, named by the index of the class from 0 to {last}'


def open_dataset(folder: str) -> tuple[Any, str]:
    """The images of a folder as timm reads them, and in words which folder is which class.

    Raises:
        UserError: If there are none, or the names of the folders leave their classes open.
    """
    try:
        dataset = create_dataset('', root=folder)
    except RuntimeError as error:  # timm's for a folder without images
        raise UserError(f'data folder {folder} holds no images in folders of their classes') from error
    numbers, reading = classes_of(dataset.reader.class_to_idx, folder)
    return (dataset if numbers is None else create_dataset('', root=folder, class_map=numbers)), reading


def read_real_labels(file: str, images: Sequence[str], num_classes: int) -> list[set[int]]:
    """The ReaL labels of images; an image may have several, or none.

    timm's ``RealLabelsImagenet`` reads the same file, but asks for all 50000 images under their first names; this is
    for a part of them too, and for images that were written again as PNG or WebP.

    Args:
        file: A list of one list of class indices per image, in the order of the images' numbers; '' for timm's copy.
        images: Names of the image files, each with its number as in ``ILSVRC2012_val_00000001.JPEG``.
        num_classes: Of the model.

    Raises:
        UserError: If the file is missing or something else, or an image's name has no number.
    """
    source = f'file of ReaL labels {file}' if file else "timm's copy of the ReaL labels"
    try:
        text = Path(file).read_bytes() if file else pkgutil.get_data('timm.data', '_info/imagenet_real_labels.json')
        labels = json.loads(text)
    except OSError as error:
        raise UserError(
            f'{source} cannot be read: {error.strerror}; it is real.json of '
            'https://github.com/google-research/reassessed-imagenet'
        ) from error
    except ValueError as error:  # of JSON, or of bytes that are no text
        raise UserError(f'{source} is not JSON: {str(error).splitlines()[0]}') from error
    form = f'it must be a list of {VALIDATION_IMAGES} lists of class indices'
    if not isinstance(labels, list) or len(labels) != VALIDATION_IMAGES:
        found = f'{len(labels)} entries' if isinstance(labels, list) else f'a value of type {type(labels).__name__}'
        raise UserError(f'{source} holds {found}; {form}')
    for number, entry in enumerate(labels, 1):
        if not isinstance(entry, list) or not all(type(label) is int and label >= 0 for label in entry):
            raise UserError(f'{source} holds {str(entry)[:60]} for image {number}; {form}')
        if max(entry, default=0) >= num_classes:
            raise UserError(f'{source} names class {max(entry)}, and the model has {num_classes} classes')
    numbers = [re.search(r'ILSVRC2012_val_(\d+)', Path(image).name) for image in images]
    for image, match in zip(images, numbers):
        if match is None or not 1 <= int(match[1]) <= VALIDATION_IMAGES:
            raise UserError(
                f'{image} has no number from 1 to {VALIDATION_IMAGES} as in ILSVRC2012_val_00000001.JPEG, by which its '
                "ReaL labels are found; they are those of ImageNet-1k's validation images alone"
            )
    chosen = [set(labels[int(match[1]) - 1]) for match in numbers]
    if not any(chosen):
        raise UserError(f'none of the {len(images)} images has a ReaL label; leave --real-labels out')
    return chosen


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


class RealHits(Hits):
    """The same by ReaL labels: any of an image's labels is a hit, and an image without one does not count.

    Args:
        labels: Those of each image, in the order in which the images come.
    """

    def __init__(self, labels: Sequence[Collection[int]]) -> None:
        super().__init__()
        self.coming = iter(labels)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: ``(N, classes)`` logits of the next images, whose ordinary labels are not looked at."""
        for named, real in zip(logits.topk(min(5, logits.shape[1])).indices.tolist(), self.coming):
            if real:
                self.top1 += named[0] in real
                self.top5 += any(label in real for label in named)
                self.total += 1

    def __str__(self) -> str:
        return f'ReaL {super().__str__()}' if self.total else 'ReaL: no image with a label'


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: torch.utils.data.DataLoader,
    device: torch.device,
    amp: bool,
    hits: Hits,
    real: RealHits | None = None,
) -> None:
    """Count a model's hits, batch by batch; by ReaL labels too, if there are any."""
    model.eval().to(device)
    progress = tqdm(loader, unit='batch')
    for images, labels in progress:
        labels = labels.to(device)
        with torch.autocast(device.type, torch.bfloat16) if amp else nullcontext():
            logits = model(images.to(device))
        hits.add(logits, labels)
        if real:
            real.add(logits, labels)
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
    dataset, reading = open_dataset(args.data)
    classes = len(dataset.reader.class_to_idx)
    if classes != model.num_classes:
        raise UserError(f'data folder {args.data} has {classes} classes; the model has {model.num_classes}')
    hits, real = Hits(), None
    if args.real_labels is not None:
        real = RealHits(read_real_labels(args.real_labels, dataset.filenames(basename=True), model.num_classes))
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
    print(f'classes: {reading}')
    try:
        evaluate(model, loader, device, args.amp, hits, real)
    except KeyboardInterrupt as interrupt:
        if hits.total:
            print(f'{args.model}: partial, after {hits.total} of {len(dataset)} images: {hits}')
        if real and real.total:
            print(f'{args.model}: partial, after {real.total} images with labels: {real}')
        raise cli.stop_of(interrupt) from None
    print(f'{args.model}: {hits} of {len(dataset)} images')
    if real:
        print(f'{args.model}: {real} of {real.total} images with labels')


if __name__ == '__main__':
    cli.run(main)
