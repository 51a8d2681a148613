"""Count the parameters and operations of configs, attention included, and write the index of models.

Operations are multiply-accumulates of a forward pass on one image, of the backbone and of all that follows: 1000
proposals for boxes and 100 for masks, where a method has them. Neither weights nor data are needed.

Example:
    python tools/count_flops.py configs/maskrcnn_cvt21_fpn_coco.py
    python tools/count_flops.py configs/maskrcnn_cvt13_fpn_coco.py --size 800 1344
    python tools/count_flops.py configs/*.py --metafile configs/metafile.yml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cvt_dense import cli

cli.need('mmengine')  # before the imports that would end in a stack trace

import torch
import yaml
from mmengine.config import Config
from torch import Tensor, nn
from tqdm import tqdm

from cvt_dense.analysis.flops import count_macs
from cvt_dense.engine.config import load_config
from cvt_dense.engine.model import build_model

#: What the first part of a config's name stands for: the method, and where it was published.
METHODS = {
    'maskrcnn': ('Mask R-CNN', 'https://arxiv.org/abs/1703.06870'),
    'cascademaskrcnn': ('Cascade Mask R-CNN', 'https://arxiv.org/abs/1906.09756'),
    'fasterrcnn': ('Faster R-CNN', 'https://arxiv.org/abs/1506.01497'),
    'retinanet': ('RetinaNet', 'https://arxiv.org/abs/1708.02002'),
    'dino': ('DINO', 'https://arxiv.org/abs/2203.03605'),
    'upernet': ('UperNet', 'https://arxiv.org/abs/1807.10221'),
    'semanticfpn': ('Semantic FPN', 'https://arxiv.org/abs/1901.02446'),
    'mask2former': ('Mask2Former', 'https://arxiv.org/abs/2112.01527'),
}
DATASETS = {
    'coco': 'COCO',
    'ade20k': 'ADE20K',
    'cityscapes': 'Cityscapes',
    'shapes': 'shapes',
    'nuclei': 'Data Science Bowl 2018',
    'custom': 'your own',
}
#: Size of the image for detectors, as their tables have it; segmentors are counted at the size of their crops.
DETECTION_SIZE = (800, 1280)
#: Boxes of an image that masks are predicted for.
MASKS = 100


class WholeModel(nn.Module):
    """A detector or segmentor as a function of an image alone."""

    def __init__(self, model: nn.Module, is_detector: bool) -> None:
        super().__init__()
        self.model = model
        self.is_detector = is_detector
        mask_heads = getattr(getattr(model, 'roi_head', None), 'mask_head', None)
        for head in mask_heads if isinstance(mask_heads, nn.ModuleList) else [mask_heads] if mask_heads else []:
            head.forward = _for_the_best_boxes(head.forward)

    def forward(self, images: Tensor) -> Any:
        size = tuple(images.shape[-2:])
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
        if not self.is_detector:
            return self.model.encode_decode(images, [meta])
        from mmdet.structures import DetDataSample

        # Not 'predict', which would run the mask head on what untrained boxes leave over: nothing.
        return self.model(images, [DetDataSample(metainfo=meta)], mode='tensor')


def _for_the_best_boxes(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A mask head for as many regions as there are predictions; mmdet's cascade gives it all proposals."""

    def forward_best(regions: Tensor) -> Tensor:
        masks = forward(regions[:MASKS])
        return torch.cat((masks, masks.new_zeros(len(regions) - len(masks), *masks.shape[1:])))

    return forward_best


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help="of the image (default: 800 1280 for detectors, segmentors' crop)",
    )
    parser.add_argument('--metafile', help="write an index that OpenMMLab's mim reads")
    return parser.parse_args()


def count(cfg: Config, size: tuple[int, int] | None = None) -> tuple[int, int, tuple[int, int]]:
    """Parameters, multiply-accumulates and the size of the image that they were counted for."""
    is_detector = cfg.default_scope == 'mmdet'
    if size is None:
        size = DETECTION_SIZE if is_detector else tuple(cfg.model.data_preprocessor.size)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = build_model(cfg)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, count_macs(WholeModel(model, is_detector), *size), size


def entry(path: Path, cfg: Config, parameters: int, macs: int, size: tuple[int, int]) -> dict[str, Any]:
    """A model of the index; results stay blank until somebody has trained it to the end."""
    method = METHODS[path.stem.split('_')[0]][0]
    dataset = next(name for part, name in DATASETS.items() if part in path.stem.split('_'))
    return {
        'Name': path.stem,
        'In Collection': method,
        'Config': f'configs/{path.name}',
        'Metadata': {
            'Training Data': dataset,
            'Parameters': parameters,
            'FLOPs': macs,
            'Input Size': 'x'.join(map(str, size)),
        },
        'Results': [],
    }


def write_metafile(models: list[dict[str, Any]], path: Path) -> None:
    """Write the index of models, and of the methods that they belong to."""
    used = {model['In Collection'] for model in models}
    collections = [
        {'Name': name, 'Paper': {'Title': name, 'URL': url}} for name, url in METHODS.values() if name in used
    ]
    head = (
        '# Written by: python tools/count_flops.py configs/*.py --metafile configs/metafile.yml\n'
        '# FLOPs are multiply-accumulates, attention counted. Results are blank: nobody has trained these to the end.\n'
    )
    path.write_text(head + yaml.safe_dump(dict(Collections=collections, Models=models), sort_keys=False))


def main() -> None:
    args = parse_args()
    models = []
    counted: dict[str, tuple[int, int, tuple[int, int]]] = {}  # schedules of one model are counted once
    print(f'{"config":<42}{"M params":>10}{"GMACs":>10}  image')
    for path in map(Path, tqdm(args.configs, disable=len(args.configs) == 1)):
        cfg = load_config(path)
        key = str(cfg.model)
        if key not in counted:
            counted[key] = count(cfg, args.size and tuple(args.size))
        parameters, macs, size = counted[key]
        tqdm.write(f'{path.stem:<42}{parameters / 1e6:>10.1f}{macs / 1e9:>10.1f}  {size[0]}x{size[1]}', sys.stdout)
        if args.metafile:
            models.append(entry(path, cfg, parameters, macs, size))
    if args.metafile:
        write_metafile(models, Path(args.metafile))


if __name__ == '__main__':
    cli.run(main)
