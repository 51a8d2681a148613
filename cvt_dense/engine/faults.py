"""What is wrong with a config although it runs: strides, pictures, maps, random starts, schedules; with cures."""

from __future__ import annotations

from contextlib import suppress

from mmengine.config import Config

from .channels import known_backbones
from .map_use import lines_of_maps
from .pictures import lines_of_pictures
from .random_start import lines_of_random_start
from .schedule import lines_of_schedule


def silent_faults(cfg: Config) -> list[str]:
    """Look for what is wrong with a config for a backbone that knows its maps (CvT, CMT), and yet trains.

    - Heads that believe in other strides than the maps have that they get: their boxes are off.
    - Pictures that are not RGB with ImageNet's mean and standard deviation, for pre-trained weights.
    - Maps of the backbone that nothing reads.

    Args:
        cfg: Config of a run; left as it is.

    Returns:
        A line for each, with the setting that cures it. Empty if all is right, or cannot be told: nothing is raised.
    """
    lines: list[str] = []
    for path, _, _ in known_backbones(cfg):
        for look in (lines_of_maps, lines_of_pictures):
            with suppress(Exception):  # of anyone's constructors and heads, which may not be stopped for a word
                lines += look(cfg, path)
    return list(dict.fromkeys(lines))


def random_start_faults(cfg: Config) -> list[str]:
    """Look for what stays random, see :func:`cvt_dense.engine.random_start.lines_of_random_start`.

    Args:
        cfg: Config of a run that loads no checkpoint but what ``init_cfg`` says; left as it is.

    Returns:
        A line for each backbone, with the settings that cure it; nothing is raised, as above.
    """
    lines: list[str] = []
    for path, _, _ in known_backbones(cfg):
        with suppress(Exception):  # of anyone's settings
            lines += lines_of_random_start(cfg, path)
    return lines


def schedule_faults(cfg: Config, epoch_iterations: int | None) -> list[str]:
    """Look for a run that is not as long as its schedule, see :func:`cvt_dense.engine.schedule.lines_of_schedule`.

    Args:
        cfg: Config of a run; left as it is.
        epoch_iterations: Iterations of an epoch in each process; None if that is not known.

    Returns:
        A line for each fault, with the settings that cure it; nothing is raised, as above.
    """
    with suppress(Exception):  # of settings of anyone's schedulers
        return lines_of_schedule(cfg, epoch_iterations)
    return []
