"""What command-line tools share: a user's mistake ends as one line and exit code 2, never as a stack trace."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import NoReturn

from .errors import UserError, reason

#: What to install for a module of another name; two stacks bring the same modules: the maintained fork and upstream.
_PACKAGES = {
    'mmengine': 'onedl-mmengine, or upstream mmengine',
    'mmcv': '--no-build-isolation onedl-mmcv, or upstream mmcv',
    'mmdet': 'onedl-mmdetection, or upstream mmdet',
    'mmseg': 'onedl-mmsegmentation, or upstream mmsegmentation',
    'skimage': 'scikit-image',
}


def check_installed(*modules: str) -> None:
    """Check that modules can be found, without importing them.

    Raises:
        UserError: If one cannot; the message says what to install.
    """
    for module in modules:
        if find_spec(module) is None:
            package = _PACKAGES.get(module, module)
            raise UserError(f'{module} is not installed: pip install {package} (see docs/install.md)')


def need(*modules: str) -> None:
    """End a tool with one line if modules that it needs are not installed."""
    try:
        check_installed(*modules)
    except UserError as error:
        sys.exit(_fail(str(error)))


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command-line tool's ``main`` and exit: 0, or with one line on stderr 2 for a mistake and 130 for Ctrl-C."""
    try:
        main()
    except UserError as error:
        sys.exit(_fail(str(error)))
    except pickle.UnpicklingError as error:  # from a URL, which mmengine reads by itself
        sys.exit(_fail(f'a checkpoint holds more than weights and was refused: {reason(error)}'))
    except OSError as error:  # no permission, no space left, a file where a folder should be
        where = f': {error.filename}' if error.filename else ''
        sys.exit(_fail(f'{error.strerror or reason(error)}{where}'))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)  # as shells do for a process that Ctrl-C ends
    sys.exit(0)


def _fail(message: str) -> int:
    print(f'error: {message}', file=sys.stderr)
    return 2
