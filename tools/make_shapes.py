"""Make the shapes data set: synthetic scenes for detection, instance and semantic segmentation.

Example:
    python tools/make_shapes.py --out data/shapes --train 2000 --val 200 --size 160 --seed 0
"""

from __future__ import annotations

import signal
import sys

from cvt_dense.datasets.shapes import main

if __name__ == '__main__':
    # Treat a polite kill like Ctrl-C, so that the unfinished folder is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
