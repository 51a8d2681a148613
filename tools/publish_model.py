"""Publish a trained model: weights without optimizer, config, metrics, model card, and the backbone for timm.

RUN is a config, which a checkpoint follows, or the work directory of a run, or a checkpoint in one. Of a work directory
the best checkpoint is published if it has one, else the newest. Nothing is overwritten, and nothing leaves this machine
without --upload.

Example:
    python tools/publish_model.py work_dirs/upernet_cvt13_ade20k --out published/upernet
    python tools/publish_model.py configs/maskrcnn_cvt13_fpn_coco.py epoch_12.pth --out published/maskrcnn
    python tools/publish_model.py work_dirs/upernet_cvt13_ade20k --out published/upernet --upload USER/NAME
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cvt_dense import cli

cli.need('mmengine', 'mmcv')  # before the imports that would end in a stack trace

from cvt_dense.engine import load_checkpoints_safely
from cvt_dense.publishing.hub import check_upload, upload
from cvt_dense.publishing.publish import check_out, publish
from cvt_dense.publishing.source import find_source


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', metavar='RUN', help='config, work directory, or checkpoint in a work directory')
    parser.add_argument('checkpoint', nargs='?', metavar='CHECKPOINT', help='checkpoint that training wrote')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write')
    parser.add_argument('--license', metavar='ID', help='of the weights, for the card, such as apache-2.0')
    parser.add_argument('--upload', metavar='USER/NAME', help='upload the folder to this repository of the Hub')
    parser.add_argument('--private', action='store_true', help='make the repository, if it is new, a private one')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    check_out(out)
    if args.upload:
        check_upload(args.upload)
    source = find_source(args.run, args.checkpoint)
    load_checkpoints_safely()
    published = publish(source, out, args.upload, args.license)
    print(f'{source.checkpoint} with {source.config} -> {out}: {", ".join(published.files)}')
    if published.not_in_timm:
        print(f'note: not for timm, since {published.not_in_timm}', file=sys.stderr)
    if not source.work_dir:
        print('note: no logs beside the checkpoint, so the card has no results', file=sys.stderr)
    if not args.license:
        print('note: the card names no licence for the weights; --license ID does', file=sys.stderr)
    if args.upload:
        print(f'uploaded to {upload(out, args.upload, args.private)}')


if __name__ == '__main__':
    cli.run(main)
