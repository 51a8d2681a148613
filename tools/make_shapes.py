"""Make the shapes data set: synthetic scenes for detection, instance and semantic segmentation.

Example:
    python tools/make_shapes.py --out data/shapes --train 2000 --val 200 --size 160 --seed 0
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cvt_dense import cli

cli.need('skimage', 'pycocotools')  # before the imports that would end in a stack trace

from cvt_dense.datasets.shapes import draw_preview
from cvt_dense.datasets.shapes_files import make_dataset
from cvt_dense.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of the data set')
    parser.add_argument('--train', type=int, default=2000, metavar='N', help='training images (%(default)s)')
    parser.add_argument('--val', type=int, default=200, metavar='N', help='validation images (%(default)s)')
    parser.add_argument('--size', type=int, default=160, metavar='S', help='side in pixels (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, metavar='K', help='seed (%(default)s)')
    parser.add_argument('--force', action='store_true', help='replace a shapes data set; keep other files')
    parser.add_argument(
        '--preview', type=Path, metavar='FILE.png', help='also draw the first training scenes with their masks'
    )
    return parser.parse_args()


def check_preview(preview: Path, out: Path) -> None:
    """Check that the preview can be written, before any scene is drawn.

    Raises:
        UserError: If it cannot.
    """
    folder = preview.resolve().parent
    if preview.suffix.lower() != '.png':
        raise UserError(f'the preview must be a .png file, not {preview}')
    if not folder.is_dir():
        raise UserError(f'the folder of the preview does not exist: {folder}')
    if folder.is_relative_to(out.resolve()):
        raise UserError('the preview must lie outside the data set')


def main() -> None:
    args = parse_args()
    if args.preview:
        check_preview(args.preview, args.out)
    start = time.perf_counter()
    if make_dataset(args.out, train=args.train, val=args.val, size=args.size, seed=args.seed, force=args.force):
        seconds = time.perf_counter() - start
        print(f'wrote {args.train} training and {args.val} validation images to {args.out} in {seconds:.1f} s')
    else:
        print(f'{args.out} holds this data set already: nothing to do')
    if args.preview:
        draw_preview(args.seed, args.size).save(args.preview)
        print(f'wrote {args.preview}')


if __name__ == '__main__':
    cli.run(main)
