"""How far the maps of a real picture move when attention is confined to windows: relative L2 change of each stage.

Of CvT-13 with the generated weights of the tests, and of the demo's CvT, which was trained.

Example:
    python tests/helpers/compare_windows.py --image data/coco_mini/val2017/000000006818.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import weights
from PIL import Image

from cvt_dense import CvT

SETTINGS: dict[str, Any] = {"'pretrain', 'pretrain', None": ['pretrain', 'pretrain', None], "'fast'": 'fast'}
DEMO = dict(arch=dict(embed_dims=[32, 64, 128], num_heads=[1, 2, 4], depths=[1, 1, 2]), out_norm=False)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--image', type=Path, required=True)
    parser.add_argument('--size', type=int, nargs=2, default=[800, 1344], help='height and width it is resized to')
    return parser.parse_args()


def prepared(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """A picture as ``(1, 3, *size)``, normalised by ImageNet's mean and deviation."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB').resize(size[::-1]), dtype=np.float32)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None].float()


def model_of(name: str, **settings: Any) -> CvT:
    """A backbone by what its row is called, in eval mode."""
    if name == 'CvT-13, generated weights':
        model = CvT('cvt-13', out_norm=False, **settings)
        model.load_state_dict(weights(model))
    else:
        model = CvT(**DEMO, **settings, init_cfg=dict(type='Pretrained', checkpoint='cvt-tiny-shapes'))
        model.init_weights()
    return model.eval()


@torch.no_grad()
def main() -> None:
    args = parse_args()
    x = prepared(args.image, tuple(args.size))
    for name in ('CvT-13, generated weights', "the demo's CvT, trained"):
        exact = model_of(name)(x)
        for setting, window_size in SETTINGS.items():
            maps = model_of(name, window_size=window_size)(x)
            changes = [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(maps, exact)]
            print(f'| {name} | {setting} | {" / ".join(f"{change:.2f}" for change in changes)} |')


if __name__ == '__main__':
    main()
