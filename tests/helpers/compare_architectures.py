"""The paper's comparisons of architectures (tables 4 to 7), in small: classify crops of street scenes by their middle.

A small CvT and its relatives with a position embedding, patches instead of overlapping embeddings, linear instead of
convolutional projections, or keys of every token, each trained from scratch on crops of CamVid's pictures. A crop's
class is that of its middle. There are as many crops of each class, so that chance is one in their number.

Example:
    python tests/helpers/compare_architectures.py --camvid data/camvid --out runs/architectures
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import TensorDataset

from cvt_dense import CvTClassifier

SIDE, MIDDLE = 64, 4
CLASSES = ('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist')
SMALL = dict(embed_dims=(24, 48, 96), num_heads=(1, 2, 4), depths=(1, 1, 2), pretrain_size=SIDE)
#: What differs, by the table of the paper that compares it.
VARIANTS: dict[str, dict[str, Any]] = {
    'CvT': {},
    'CvT, position in each stage': dict(position='learned'),
    'CvT, position in the first stage': dict(position=['learned', 'none', 'none']),
    'CvT, position in the last stage': dict(position=['none', 'none', 'learned']),
    'patches': dict(patch_embed='patch'),
    'patches, position in each stage': dict(patch_embed='patch', position='learned'),
    'keys of every token': dict(kv_stride=1),
    'linear projection': dict(projection='linear'),
    'linear projection, position in each stage': dict(projection='linear', position='learned'),
    'patches, linear projection': dict(patch_embed='patch', projection='linear'),
    'patches, linear projection, position in each stage': dict(
        patch_embed='patch', projection='linear', position='learned'
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--camvid', type=Path, required=True, help="CamVid's folder, in ADE20K's layout")
    parser.add_argument('--out', type=Path, required=True, help='folder for the runs, results.json and results.png')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='a training of each (default: 0 1 2)')
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS), help='default: all')
    parser.add_argument('--epochs', type=int, default=10, help='of a training (default: 10)')
    parser.add_argument('--crops', type=int, nargs=2, default=[500, 150], help='of each class, to train on and to test')
    return parser.parse_args()


def crops_of(root: Path, split: str, count: int) -> TensorDataset:
    """Cut crops whose middle is of one class, ``count`` of each class, from the pictures of a split in turn.

    Returns:
        Of ``(N, 3, SIDE, SIDE)`` normalised images and ``(N,)`` labels.
    """
    draw = np.random.default_rng(0)
    pictures = []
    for path in sorted((root / 'images' / split).iterdir()):
        with Image.open(path) as image, Image.open(root / 'annotations' / split / f'{path.stem}.png') as labels:
            pictures.append((np.asarray(image.convert('RGB')), np.asarray(labels)))
    places: list[list[tuple[int, int, int]]] = [[] for _ in CLASSES]
    half = SIDE // 2
    for number, (_, labels) in enumerate(pictures):
        middles = torch.from_numpy(labels.astype(np.float32))[None, None]
        high, low = F.max_pool2d(middles, MIDDLE, 1)[0, 0], -F.max_pool2d(-middles, MIDDLE, 1)[0, 0]
        first = half - MIDDLE // 2  # the top left pixel of the middle of the crop at the top left of the picture
        inside = (high == low)[first : first + labels.shape[0] - SIDE + 1, first : first + labels.shape[1] - SIDE + 1]
        found = high[first : first + inside.shape[0], first : first + inside.shape[1]]
        for index in range(len(CLASSES)):
            rows, columns = ((found == index + 1) & inside).nonzero().T.numpy()
            for at in draw.permutation(len(rows))[: max(1, 10 * count // len(pictures))]:
                places[index].append((number, rows[at], columns[at]))
    images, labels = [], []
    for index, candidates in enumerate(places):
        if len(candidates) < count:
            raise SystemExit(
                f'error: only {len(candidates)} crops of {CLASSES[index]} in {split}; ask for fewer --crops'
            )
        for at in draw.permutation(len(candidates))[:count]:
            number, top, left = candidates[at]
            images.append(pictures[number][0][top : top + SIDE, left : left + SIDE])
            labels.append(index)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    mean_, std = (torch.tensor(v)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    return TensorDataset((pixels - mean_) / std, torch.tensor(labels))


class Classifier(BaseModel):
    """A classifier as mmengine's loop takes it."""

    def __init__(self, arch: dict[str, Any]) -> None:
        super().__init__()
        self.network = CvTClassifier(SMALL | arch, num_classes=len(CLASSES), drop_path_rate=0.1)

    def forward(self, images: torch.Tensor, labels: torch.Tensor, mode: str) -> Any:
        if mode == 'loss':
            flipped = torch.rand(len(images), 1, 1, 1) < 0.5
            logits = self.network(torch.where(flipped, images.flip(3), images))
            return dict(loss=F.cross_entropy(logits, labels, label_smoothing=0.1))
        return [self.network(images).argmax(1) == labels]


class Accuracy(BaseMetric):
    """Share of images whose class is found, in percent."""

    default_prefix = 'crops'

    def process(self, data_batch: Any, data_samples: list[torch.Tensor]) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list[torch.Tensor]) -> dict[str, float]:
        return dict(accuracy=100 * torch.cat(results).float().mean().item())


def train(name: str, seed: int, train_set: TensorDataset, val_set: TensorDataset, epochs: int, out: Path) -> float:
    """Train a variant; returns its accuracy in percent after the last epoch."""
    loader = dict(num_workers=0, collate_fn=dict(type='default_collate'))
    runner = Runner(
        model=Classifier(VARIANTS[name]),
        work_dir=str(out / 'runs'),
        experiment_name=f'{name} {seed}'.replace(' ', '_').replace(',', ''),
        train_dataloader=dict(
            dataset=train_set,
            batch_size=64,
            drop_last=True,
            sampler=dict(type='DefaultSampler', shuffle=True),
            **loader,
        ),
        val_dataloader=dict(
            dataset=val_set, batch_size=256, sampler=dict(type='DefaultSampler', shuffle=False), **loader
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=epochs),
        val_cfg=dict(),
        val_evaluator=Evaluator([Accuracy()]),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=dict(
                norm_decay_mult=0.0,
                bias_decay_mult=0.0,
                custom_keys={name: dict(decay_mult=0.0) for name in ('cls_token', 'pos_embed')},
            ),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
            dict(
                type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True
            ),
        ],
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=50)),
        randomness=dict(seed=seed),
        log_level='WARNING',
    )
    runner.train()
    return runner.message_hub.get_scalar('val/crops/accuracy').current()


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """Draw each training as a point, and the mean of each variant as a line."""
    names = list(results)
    figure = Figure(figsize=(9, 0.4 * len(names) + 1), layout='constrained')
    axes = figure.subplots()
    for row, name in enumerate(names):
        values = list(results[name].values())
        axes.plot(values, [row] * len(values), 'o', color='tab:blue', alpha=0.6)
        axes.plot([mean(values)] * 2, [row - 0.3, row + 0.3], color='black')
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel('accuracy in %, a point a training')
    axes.grid(axis='x', alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    train_set, val_set = (
        crops_of(args.camvid, split, count) for split, count in zip(('training', 'validation'), args.crops)
    )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'results.json'
    results: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for name in args.variants:
        for seed in args.seeds:
            if str(seed) in results.get(name, {}):
                continue
            torch.manual_seed(seed)
            started = time.perf_counter()
            accuracy = train(name, seed, train_set, val_set, args.epochs, args.out)
            results.setdefault(name, {})[str(seed)] = accuracy
            path.write_text(json.dumps(results, indent=1))
            print(f'{name}, seed {seed}: {accuracy:.1f} % ({time.perf_counter() - started:.0f} s)', flush=True)
    results = {name: results[name] for name in VARIANTS if name in results}
    plot(results, args.out / 'results.png')
    for name, found in results.items():
        values = list(found.values())
        spread = f' ± {stdev(values):.1f}' if len(values) > 1 else ''
        print(f'| {name} | {mean(values):.1f}{spread} | {", ".join(f"{value:.1f}" for value in values)} |')


if __name__ == '__main__':
    main()
