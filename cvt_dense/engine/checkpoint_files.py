"""How runs write and read checkpoints: whole or not at all, and without running code that they carry."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor

from ..checkpoints.files import read
from ..files import write_whole
from .interruption import INTERRUPTED


@HOOKS.register_module()
class KeepUntilSavedCheckpointHook(CheckpointHook):
    """mmengine's hook, which deletes the oldest and the once best checkpoint after, not before, writing the new one.

    It deletes nothing but what is in the run's own folder: a checkpoint that was resumed from may name files of others.
    """

    def before_train(self, runner: Runner) -> None:
        """Collect what mmengine would delete, and forget the best checkpoint of another folder."""
        super().before_train(runner)
        self.file_backend = _DeleteLater(self.file_backend)
        if getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = self._own(self.best_ckpt_path)
        for key, path in getattr(self, 'best_ckpt_path_dict', {}).items():
            self.best_ckpt_path_dict[key] = path and self._own(path)

    def _own(self, path: str) -> str | None:
        """A file of the run's folder; where that was moved or copied, the one that is there now."""
        own = self.file_backend.join_path(self.out_dir, Path(path).name)
        return own if self.file_backend.isfile(own) else None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        if is_main_process():
            self.file_backend.delete()
            Path(runner.work_dir, INTERRUPTED).unlink(missing_ok=True)  # this one is newer

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(runner, metrics)
        if is_main_process():
            self.file_backend.delete()


class _DeleteLater:
    """A file backend of mmengine that collects deletions until :meth:`delete`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._pending: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._pending.append(lambda: self._backend.remove(path))

    def rmtree(self, path: str) -> None:
        self._pending.append(lambda: self._backend.rmtree(path))

    def delete(self) -> None:
        while self._pending:
            self._pending.pop(0)()


class AtomicLocalBackend(LocalBackend):
    """mmengine's writer of files, which leaves the old file or the new one behind and never a part."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file, making its folder if needed.

        Raises:
            OSError: If that fails; what was at ``filepath`` is still there then.
        """
        rank = get_rank()  # all processes of a run write some files, each the same
        try:
            write_whole(Path(filepath), obj, f'.{rank}' if rank else '')
        except OSError as error:
            if Path(filepath).suffix != '.pth':
                raise
            what = f'{error.strerror}; checkpoints that were saved before are whole'
            raise OSError(error.errno, what, error.filename) from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file, see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


def write_files_atomically() -> None:
    """Let mmengine, in this process, write checkpoints so that an interruption leaves no torn file."""
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')


def load_checkpoints_safely() -> None:
    """Let mmengine, in this process, read checkpoints without running code that they carry.

    onedl-mmengine falls back to an unsafe load of whatever the safe one refuses; upstream mmengine cannot resume with
    torch 2.6 or later. Both read local files through :func:`read_checkpoint` from here on, and torch refuses unsafe
    loads from all code.
    """
    CheckpointLoader.register_scheme(prefixes='', loader=read_checkpoint, force=True)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


#: A checkpoint that was read to check it and that mmengine has not loaded yet, by path, size and time of change.
_read_ahead: dict[tuple[str, int, int], Mapping[str, Any]] = {}


def read_ahead(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read a checkpoint that is going to be loaded: however often, the file is read once.

    Raises:
        CheckpointError: As :func:`read_checkpoint` does.
    """
    key = _key(path)
    if key is None or key not in _read_ahead:
        _read_ahead.clear()  # one at most: large ones take gigabytes
        content = read(Path(path).expanduser())
        if key is None:
            return content
        _read_ahead[key] = content
    return _read_ahead[key]


def read_checkpoint(filename: str, map_location: Any = None) -> Mapping[str, Any]:
    """Read a checkpoint as mmengine writes it; what was read ahead is handed over and forgotten.

    Args:
        filename: A local file.
        map_location: Ignored, mmengine's loaders have it: tensors come on the CPU, and loading them into a model
            or an optimizer copies them to its device.

    Raises:
        CheckpointError: If there is no such file, or it is damaged, or it holds more than mmengine writes.
    """
    content = _read_ahead.pop(_key(filename), None)
    if content is None:
        content = read(Path(filename).expanduser())
    # Of weights alone, such as a .safetensors file's, hooks expect what is around them otherwise.
    is_bare = all(isinstance(value, Tensor) for value in content.values())
    return dict(meta={}, state_dict=content) if is_bare else content


def _key(path: str | os.PathLike[str]) -> tuple[str, int, int] | None:
    """What identifies a file and its content; None if there is no file."""
    path = Path(path).expanduser()
    if not path.is_file():
        return None
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns
