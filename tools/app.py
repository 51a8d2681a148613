"""Look at a trained model in the browser: what it finds in pictures, and what is inside of it.

Serves a page on this machine alone, until Ctrl-C, and prints its address.

Example:
    python tools/app.py configs/maskrcnn_cvt21_fpn_coco.py CHECKPOINT
    python tools/app.py configs/upernet_cvt13_ade20k.py CHECKPOINT --port 8000 --device cpu
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from ipaddress import ip_address
from pathlib import Path

from cvt_dense import cli

cli.need('mmengine')  # before the imports that would end in a stack trace

from mmengine.config import DictAction

from cvt_dense.apis import Predictor, choose_device
from cvt_dense.apis.viewer import Viewer
from cvt_dense.engine import launch
from cvt_dense.engine.config import load_config
from cvt_dense.engine.devices import hide_gpu_without_operators
from cvt_dense.errors import UserError
from cvt_dense.visualization.painter import SCORE_THRESHOLD


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file that training wrote')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen at (default: this machine alone)')
    parser.add_argument('--port', type=int, help='port to listen at (default: 7860, or the next one that is free)')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=SCORE_THRESHOLD,
        metavar='SCORE',
        help='where the score slider stands at first (default: %(default)s)',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings of the config: KEY=VALUE ...'
    )
    return parser.parse_args()


def is_loopback(host: str) -> bool:
    """Whether an address is one that only this machine reaches."""
    try:
        return host == 'localhost' or ip_address(host.strip('[]')).is_loopback
    except ValueError:  # another name
        return False


def main() -> None:
    args = parse_args()
    if not 0 <= args.score_thr <= 1:
        raise UserError(f'--score-thr must lie between 0 and 1, got {args.score_thr}')
    cli.check_installed('gradio')
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    from cvt_dense.apis.page import Page, served  # nothing else needs Gradio

    cfg = load_config(args.config, args.cfg_options)
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UserError(f'config {args.config} is one of {cfg.default_scope}; this tool is for mmdet and mmseg')
    hide_gpu_without_operators(cfg)
    viewer = Viewer(Predictor(cfg, args.checkpoint, choose_device(args.device)))
    with tempfile.TemporaryDirectory(prefix='cvt_dense-app-') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder  # of what is uploaded and drawn
        page = Page(viewer, f'{Path(args.config).stem}, {Path(args.checkpoint).name}', args.score_thr)
        with served(page, args.host, args.port) as address:
            if not is_loopback(args.host):
                print(f'warning: whoever reaches {args.host} can use the page; it has no password', file=sys.stderr)
            print(f'the page is at {address} until Ctrl-C', flush=True)
            threading.Event().wait()


if __name__ == '__main__':
    launch.run(main)
