"""Train a detector on images of mixed sizes with padding ignored and computed, and evaluate it alone and in batches.

Each run is one of configs/maskrcnn_cvttiny_fpn_nuclei.py, from the demo's weights, on nuclei that are cropped to sides
of 96 to 256 pixels and then scaled to 256 pixels for the longer one.

Example:
    python tests/helpers/compare_padding.py --nuclei data/nuclei --out runs/padding
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import numpy as np
from paths import ROOT
from PIL import Image
from pycocotools import mask as coco

CONFIG = 'configs/maskrcnn_cvttiny_fpn_nuclei.py'
BATCH_SIZES = (1, 4)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--nuclei', type=Path, required=True, help="the nuclei's folder, as docs/finetuning.md has it")
    parser.add_argument('--out', type=Path, required=True, help='a new folder for data and runs')
    parser.add_argument('--seeds', type=int, default=3, help='trainings of each kind; 0: only the data (default: 3)')
    return parser.parse_args()


def crop_to_mixed_sizes(source: Path, target: Path, count: int | None = None) -> None:
    """Crop the nuclei, 256x256 pixels, to sides between 96 and 256; what is left of fewer than 8 pixels goes.

    Args:
        source: Their folder.
        target: A new folder.
        count: Only so many training pictures, and a third as many others; all by default.
    """
    draw = random.Random(0)
    for part in ('train', 'val'):
        content = json.loads((source / f'instances_{part}.json').read_text())
        (target / part).mkdir(parents=True)
        crops = {}
        if count is not None:
            content['images'] = content['images'][: count if part == 'train' else count // 3]
        for image in content['images']:
            width, height = (draw.randrange(96, side + 1) for side in (image['width'], image['height']))
            left, top = draw.randint(0, image['width'] - width), draw.randint(0, image['height'] - height)
            with Image.open(source / part / image['file_name']) as picture:
                picture.crop((left, top, left + width, top + height)).save(target / part / image['file_name'])
            image.update(width=width, height=height)
            crops[image['id']] = slice(top, top + height), slice(left, left + width)
        kept = []
        for entry in content['annotations']:
            if entry['image_id'] not in crops:
                continue
            rle = entry['segmentation']
            rle = coco.frPyObjects(rle, *rle['size']) if isinstance(rle['counts'], list) else rle
            mask = np.asfortranarray(coco.decode(rle)[crops[entry['image_id']]])
            if mask.sum() >= 8:
                rle = coco.encode(mask)
                rle_text = dict(rle, counts=rle['counts'].decode())
                kept.append(entry | dict(area=int(mask.sum()), bbox=coco.toBbox(rle).tolist(), segmentation=rle_text))
        (target / f'instances_{part}.json').write_text(json.dumps(content | dict(annotations=kept)))


def run(tool: str, data: Path, work_dir: Path, *arguments: str, options: list[str]) -> str:
    """Run a tool on the data, and return what it printed."""
    command = [sys.executable, f'tools/{tool}', CONFIG, *arguments, '--work-dir', str(work_dir)]
    env = os.environ | dict(NUCLEI_ROOT=str(data))
    command += ['--cfg-options', *options]
    return subprocess.run(command, cwd=ROOT, env=env, text=True, check=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    args = parse_args()
    out = args.out.absolute()
    crop_to_mixed_sizes(args.nuclei, out / 'data')
    if not args.seeds:
        return
    print(f'{"padding":10} {"batch size":>10} {"box AP":>10} {"mask AP":>10}   of each seed')
    for ignored in (True, False):
        scores: dict[int, list[tuple[float, float]]] = {batch_size: [] for batch_size in BATCH_SIZES}
        setting = f'model.backbone.ignore_padding={ignored}'
        for seed in range(args.seeds):
            work_dir = out / f'{"ignored" if ignored else "computed"}_{seed}'
            run('train.py', out / 'data', work_dir, options=[setting, f'randomness.seed={seed}'])
            (checkpoint,) = work_dir.glob('epoch_8.pth')
            for batch_size in BATCH_SIZES:
                options = [setting, f'test_dataloader.batch_size={batch_size}']
                printed = run('test.py', out / 'data', work_dir / 'test', str(checkpoint), options=options)
                box, mask = re.findall(r'coco/(?:bbox|segm)_mAP: ([\d.]+)', printed)[-2:]
                scores[batch_size].append((float(box), float(mask)))
        for batch_size, pairs in scores.items():
            box, mask = (mean(values) for values in zip(*pairs))
            name = 'ignored' if ignored else 'computed'
            print(f'{name:10} {batch_size:>10} {box:>10.3f} {mask:>10.3f}   {pairs}', flush=True)


if __name__ == '__main__':
    main()
