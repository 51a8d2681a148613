"""Cut the CvT backbone out of a trained detector's or segmentor's checkpoint, ready for ``init_cfg``.

Example:
    python tools/extract_backbone.py work_dirs/upernet_cvt13_ade20k/iter_160000.pth cvt-13-ade20k.safetensors --half
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from cvt_dense import launch
from cvt_dense.checkpoints.formats import to_trunk
from cvt_dense.unpickling import read_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint that training wrote')
    parser.add_argument('out', help='.safetensors file to write')
    parser.add_argument('--half', action='store_true', help='store floating-point tensors in half precision')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    if out.suffix != '.safetensors':
        raise launch.UserError(f'{out} must end in .safetensors')
    if out.exists() and not args.force:
        raise launch.UserError(f'{out} exists; overwrite it with --force')
    launch.check_checkpoint(args.checkpoint)
    converted = to_trunk(read_checkpoint(args.checkpoint), prefix='backbone')
    if converted is None:
        raise launch.UserError(f'checkpoint {args.checkpoint} holds no CvT backbone')
    tensors = {
        name: (tensor.to(torch.float16) if args.half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in converted[0].items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out, metadata={'format': 'pt'})
    print(f'wrote {len(tensors)} tensors to {out} ({out.stat().st_size / 2**20:.1f} MiB)')


if __name__ == '__main__':
    launch.run(main)
