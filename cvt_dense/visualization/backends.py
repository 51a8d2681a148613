"""Where a run logs besides its own folder: mmengine's backends, by the iteration, and going on where a run resumes.

Each keeps to the variables of its own package's environment. What identifies the log is noted in the work directory, in
``logged_to.json``. The packages are imported as a run starts, by its first process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from mmengine.registry import VISBACKENDS
from mmengine.visualization import (
    AimVisBackend,
    ClearMLVisBackend,
    MLflowVisBackend,
    TensorboardVisBackend,
    WandbVisBackend,
)

from ..errors import UserError, reason

_NOTE = 'logged_to.json'


class _Continues:
    """What the backends share: they know the run's folders, and the log that a resumed run goes on with.

    Args:
        save_dir: ``vis_data`` in the folder of this start of the run.
        resumed_at: Iteration that the run goes on from; None for one that starts anew, and so with a new log.
        **settings: Of mmengine's backend.
    """

    name: str

    def __init__(self, save_dir: str, resumed_at: int | None = None, **settings: Any) -> None:
        super().__init__(save_dir, **settings)
        self.work_dir = Path(save_dir).absolute().parents[1]
        self.resumed_at = resumed_at

    def start(self) -> None:
        """Begin a log, or go on with the one that is noted."""
        raise NotImplementedError

    def _init_env(self) -> None:
        try:
            self.start()
        except Exception as error:  # each package has its own, for keys, servers and settings
            raise UserError(
                f'{self.name} cannot be logged to: {type(error).__name__}: {reason(error)}',
                f'see its documentation, or leave {self.name} out of --log-to',
            ) from error

    def noted(self) -> str | None:
        """What identifies the log that this run goes on with; None for a new one."""
        return None if self.resumed_at is None else _read_note(self.work_dir).get(self.name)

    def note(self, identity: str) -> None:
        """Note what identifies the log, for a run that is resumed from this one."""
        noted = _read_note(self.work_dir) | {self.name: identity}
        (self.work_dir / _NOTE).write_text(f'{json.dumps(noted, indent=2)}\n')


def _read_note(work_dir: Path) -> dict[str, str]:
    try:
        return json.loads((work_dir / _NOTE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # the latter of a run that was killed
        return {}


@VISBACKENDS.register_module()
class TensorboardBackend(_Continues, TensorboardVisBackend):
    """TensorBoard's event files; a resumed run adds one to the folder of the run that it goes on from.

    What that had logged after the iteration that is resumed from is dropped by TensorBoard.
    """

    name = 'tensorboard'

    def start(self) -> None:
        """Open the folder."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self.work_dir / (self.noted() or os.path.relpath(self._save_dir, self.work_dir))
        purged = None if self.resumed_at is None else self.resumed_at + 1
        self._tensorboard = SummaryWriter(str(folder), purge_step=purged)
        self.note(os.path.relpath(folder, self.work_dir))


@VISBACKENDS.register_module()
class WandbBackend(_Continues, WandbVisBackend):
    """Weights & Biases, in ``wandb/`` of the work directory, with the iteration as the axis of all charts.

    Where it has no key and cannot ask for one, it logs offline and says so.
    """

    name = 'wandb'

    def __init__(self, save_dir: str, init_kwargs: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(save_dir, init_kwargs=dict(init_kwargs or {}), **settings)

    def start(self) -> None:
        """Log in, or go offline."""
        import wandb

        settings = self._init_kwargs
        settings.setdefault('dir', str(self.work_dir))
        for key, variable, value in (
            ('project', 'WANDB_PROJECT', 'cvt_dense'),
            ('name', 'WANDB_NAME', self.work_dir.name),
            ('id', 'WANDB_RUN_ID', self.noted()),
        ):
            if value and not os.environ.get(variable):
                settings.setdefault(key, value)
        settings.setdefault('resume', os.environ.get('WANDB_RESUME', 'allow'))
        try:
            WandbVisBackend._init_env(self)
        except wandb.errors.UsageError as error:
            if not re.search(r'api[ _]key', str(error), re.IGNORECASE) or os.environ.get('WANDB_MODE'):
                raise
            settings['mode'] = 'offline'
            WandbVisBackend._init_env(self)
            print(
                f'note: wandb has no key and logs offline; wandb sync {self.work_dir}/wandb/offline-run-* uploads it. '
                'For the next run: wandb login, or WANDB_API_KEY',
                file=sys.stderr,
            )
        wandb.define_metric('iter')
        wandb.define_metric('*', step_metric='iter')
        self.note(wandb.run.id)

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Record the config; not all code below the current folder, as mmengine does, which may hold an environment."""
        self.experiment.config.update(config.to_dict(), allow_val_change=True)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Record an RGB image."""
        wandb = self.experiment
        wandb.log({name: wandb.Image(image), 'iter': step})

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Record a number."""
        self.experiment.log({name: value, 'iter': step})

    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Record numbers."""
        self.experiment.log({**scalar_dict, 'iter': step})

    def close(self) -> None:
        """End the run."""
        if hasattr(self, '_wandb'):
            self._wandb.finish()


@VISBACKENDS.register_module()
class MLflowBackend(_Continues, MLflowVisBackend):
    """MLflow: the server of ``MLFLOW_TRACKING_URI``, or else a data base in ``mlflow/`` of the work directory.

    mmengine's own takes a folder of files, which MLflow 3 refuses.
    """

    name = 'mlflow'

    def start(self) -> None:
        """Open the data base, or connect to the server."""
        import mlflow

        self._mlflow = mlflow
        uri = self._tracking_uri or os.environ.get('MLFLOW_TRACKING_URI')
        artifacts = self._artifact_location
        if not uri:
            folder = self.work_dir / 'mlflow'
            folder.mkdir(exist_ok=True)
            uri, artifacts = f'sqlite:///{folder / "mlflow.db"}', artifacts or (folder / 'artifacts').as_uri()
        mlflow.set_tracking_uri(uri)
        experiment = self._exp_name or os.environ.get('MLFLOW_EXPERIMENT_NAME') or 'cvt_dense'
        if mlflow.get_experiment_by_name(experiment) is None:
            mlflow.create_experiment(experiment, artifact_location=artifacts)
        mlflow.set_experiment(experiment)
        name = self._run_name or os.environ.get('MLFLOW_RUN_NAME') or self.work_dir.name
        run = mlflow.start_run(run_id=self.noted(), run_name=None if self.noted() else name)
        if self._tags:
            mlflow.set_tags(self._tags)
        self.note(run.info.run_id)
        _reopen_log_files()

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Record the config as a file, and its settings as parameters, which a resumed run cannot change."""
        mlflow = self.experiment
        mlflow.log_text(config.pretty_text, 'config.py')
        if self.resumed_at is None:
            kept = {key: config[key] for key in self._tracked_config_keys or config}
            self._warn(mlflow.log_params, _flat(Config(kept).to_dict()))

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Record a number."""
        self.add_scalars({name: value}, step)

    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Record numbers; of their names, which may be of classes, what MLflow takes."""
        metrics = {re.sub(r'[^\w\-. :/]', '_', name): float(value) for name, value in scalar_dict.items()}
        self._warn(self.experiment.log_metrics, metrics, step)

    def _warn(self, log: Any, *arguments: Any) -> None:
        """Let training go on if MLflow does not take something."""
        try:
            log(*arguments)
        except self._mlflow.MlflowException as error:
            lines = str(error).splitlines() or ['']
            print_log(f'not logged to MLflow: {lines[0]:.300}', logger='current', level=logging.WARNING)

    def close(self) -> None:
        """Record the log files of this start, and end the run."""
        if hasattr(self, '_mlflow'):
            for path in Path(self._save_dir).parent.rglob('*'):
                if path.is_file() and path.name.endswith(tuple(self._artifact_suffix)):
                    folder = path.parent.relative_to(self.work_dir).as_posix()
                    self._warn(self._mlflow.log_artifact, str(path), folder)
            self._warn(self._mlflow.end_run)


def _flat(settings: Any, path: str = '') -> dict[str, Any]:
    """Settings by their dotted paths."""
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    found: dict[str, Any] = {}
    for key, value in entries:
        below = f'{path}{key}'
        nested = isinstance(value, dict) or (
            isinstance(value, (list, tuple)) and any(isinstance(entry, dict) for entry in value)
        )
        found |= _flat(value, f'{below}.') if nested else {below: value}
    return found


def _reopen_log_files() -> None:
    """Let the run's log go on: MLflow sets Python's logging up as it is imported, which closes all handlers."""
    for handler in MMLogger.get_current_instance().handlers:
        if isinstance(handler, logging.FileHandler) and (handler.stream is None or handler.stream.closed):
            handler.stream = open(handler.baseFilename, 'a', encoding=handler.encoding)  # noqa: SIM115  the handler's


@VISBACKENDS.register_module()
class ClearMLBackend(_Continues, ClearMLVisBackend):
    """ClearML, by its own configuration; offline with ``CLEARML_OFFLINE_MODE=1``."""

    name = 'clearml'

    def start(self) -> None:
        """Make a task."""
        settings = self._init_kwargs = dict(self._init_kwargs or {})
        settings.setdefault('project_name', os.environ.get('CLEARML_PROJECT', 'cvt_dense'))
        settings.setdefault('task_name', os.environ.get('CLEARML_TASK', self.work_dir.name))
        settings.setdefault('reuse_last_task_id', self.noted() or False)
        # ClearML takes 0 for "go on, with the iterations as they are counted", and True for "count on from the last".
        settings.setdefault('continue_last_task', 0 if self.noted() else False)
        settings.setdefault(
            'auto_connect_frameworks', False
        )  # it would log what other backends log, and upload weights
        ClearMLVisBackend._init_env(self)
        self.note(self._task.id)


@VISBACKENDS.register_module()
class AimBackend(_Continues, AimVisBackend):
    """Aim, in ``.aim/`` of the work directory."""

    name = 'aim'

    def start(self) -> None:
        """Make a run."""
        settings = self._init_kwargs = dict(self._init_kwargs or {})
        settings.setdefault('repo', str(self.work_dir))
        settings.setdefault('experiment', self.work_dir.name)
        if self.noted():
            settings.setdefault('run_hash', self.noted())
        AimVisBackend._init_env(self)
        self.note(self._aim_run.hash)
