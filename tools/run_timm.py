"""Run one of timm's scripts, such as train.py, with CvT and CMT among its models (docs/pretraining.md).

timm's scripts import no other package, and have no option for it. They are in its repository, not in its wheels. What
follows the script goes to it unchanged; errors, signals and the exit code are its own.

Example:
    python tools/run_timm.py pytorch-image-models/train.py --data-dir imagenet --model cvt_13
    torchrun --nproc_per_node 8 tools/run_timm.py pytorch-image-models/train.py --data-dir imagenet --model cvt_13
    python tools/run_timm.py pytorch-image-models/validate.py --data-dir imagenet --model cvt_13 --pretrained
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

import timm

import cvt_dense  # noqa: F401  registers the models in timm
from cvt_dense.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('script', metavar='SCRIPT', help='the script, such as pytorch-image-models/train.py')
    parser.add_argument('arguments', metavar='…', nargs=argparse.REMAINDER, help="the script's own arguments")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not Path(args.script).is_file():
        raise UserError(
            f'there is no script {args.script}; timm has its scripts in its repository alone: git clone --branch '
            f'v{timm.__version__} https://github.com/huggingface/pytorch-image-models'
        )
    sys.argv = [args.script, *args.arguments]
    sys.path.insert(0, str(Path(args.script).resolve().parent))  # as Python does, for what lies beside the script
    runpy.run_path(args.script, run_name='__main__')


if __name__ == '__main__':
    try:
        main()
    except UserError as error:  # not by cli.run, which would take the script's signals and errors for a tool's
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
