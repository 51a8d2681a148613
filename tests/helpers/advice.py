"""Does what the advice of an error or of the doctor says, as a reader would."""

from __future__ import annotations

import ast
import copy
import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from doctor import parsed
from mmengine.config import Config


class CannotBeObeyed(AssertionError):
    """An advice that names neither a setting nor an option nor an entry of the data."""


def obey(advice: str, annotations: Path, places: Mapping[str, str] = {}) -> list[str]:
    """Do what an advice says: edit the config's file, or the annotation file.

    Args:
        advice: One line.
        annotations: The annotation file that is spoken of.
        places: What the reader puts where an advice has FILE, FOLDER and the like.

    Returns:
        What it adds to the options of the command line, ``KEY=VALUE``.

    Raises:
        CannotBeObeyed: If it says nothing of this kind.
    """
    for place, value in places.items():
        advice = advice.replace(place, value)
    if '--cfg-options ' in advice:
        return shlex.split(re.split(r', or |; ', advice.rpartition('--cfg-options ')[2])[0])
    if found := re.search(r'\bset (\w+) = (.+?) in (\S+\.py)\b', advice):
        set_at_the_top(Path(found[3]), found[1], found[2])
    elif found := re.search(r'\bremove annotation (\d+)', advice):
        _edit(annotations, lambda content: _keep(content, 'annotations', lambda _, entry: entry['id'] != int(found[1])))
    elif found := re.search(r'\bremove annotations\[(\d+)\]', advice):
        _edit(annotations, lambda content: _keep(content, 'annotations', lambda number, _: number != int(found[1])))
    elif found := re.search(r'\bremove image (\d+) from the data', advice):
        _edit(annotations, lambda content: _remove_image(content, int(found[1])))
    elif found := re.search(r'"width": (\d+), "height": (\d+) for image (\d+)', advice):
        width, height, image = map(int, found.groups())
        _edit(annotations, lambda content: _entry(content, image).update(width=width, height=height))
    else:
        raise CannotBeObeyed(advice)
    return []


def with_options(cfg: Config, advice: str) -> Config:
    """A copy of a config with the options that an advice names, parsed as tools do."""
    changed = copy.deepcopy(cfg)
    changed.merge_from_dict(parsed(tuple(obey(advice, Path()))))
    return changed


def set_at_the_top(config: Path, name: str, value: str) -> None:
    """Give a name another value where a config's file sets it, alone or as one of several."""
    text = config.read_text()
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        targets = node.targets[0] if isinstance(node, ast.Assign) else None
        names = [target.id for target in ast.walk(targets) if isinstance(target, ast.Name)] if targets else []
        if name in names:
            values = node.value.elts if len(names) > 1 else [node.value]
            old = values[names.index(name)]
            assert old.lineno == old.end_lineno
            line = lines[old.lineno - 1].encode()
            lines[old.lineno - 1] = (line[: old.col_offset] + value.encode() + line[old.end_col_offset :]).decode()
            config.write_text(''.join(lines))
            return
    raise CannotBeObeyed(f'{config} sets no {name}')


def _edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def _keep(content: dict[str, Any], kind: str, keep: Callable[[int, dict[str, Any]], bool]) -> None:
    before = content[kind]
    content[kind] = [entry for number, entry in enumerate(before) if keep(number, entry)]
    assert len(content[kind]) < len(before)


def _remove_image(content: dict[str, Any], image: int) -> None:
    _keep(content, 'images', lambda _, entry: entry['id'] != image)
    _keep(content, 'annotations', lambda _, entry: entry['image_id'] != image)


def _entry(content: dict[str, Any], image: int) -> dict[str, Any]:
    return next(entry for entry in content['images'] if entry['id'] == image)
