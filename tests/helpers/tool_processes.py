"""Tools in processes of their own, forked from one that has imported what they need: the imports take longer than they.

Not from the tests' own process: once that has computed gradients, torch lets none be computed in a fork of it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from paths import ROOT

_server: subprocess.Popen[str] | None = None


class ToolProcess:
    """A run of a tool, with what is needed of :class:`subprocess.Popen`.

    Args:
        arguments: The tool's file, and its arguments.
        log: File that stdout and stderr are written to.
        errors: Another file for stderr.
        cwd: Its working directory.
        env: All of its environment variables; those that count during the imports have no effect.
        new_session: Start it as the leader of a session, and of a group of processes, of its own.
        file_size_limit: Bytes that a file may have at most, for it.

    Attributes:
        pid: Of the process.
        returncode: Its exit code, negative for a signal that ended it; None while it runs.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        log: Path,
        errors: Path | None = None,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        new_session: bool = False,
        file_size_limit: int | None = None,
    ) -> None:
        server = _running_server()
        for file in {log, errors or log}:
            Path(file).write_text('')
        self.returncode: int | None = None
        folder = tempfile.mkdtemp()
        self._exit_code = Path(folder, 'exit code')
        request = dict(
            arguments=[str(argument) for argument in arguments],
            outputs=[str(log), str(errors or log)],
            cwd=str(cwd),
            env=dict(os.environ if env is None else env),
            new_session=new_session,
            file_size_limit=file_size_limit,
            exit_code=str(self._exit_code),
        )
        server.stdin.write(f'{json.dumps(request)}\n')
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def poll(self) -> int | None:
        """The exit code if the process has ended."""
        if self.returncode is None and self._exit_code.exists():
            self.returncode = int(self._exit_code.read_text())
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Wait for the process to end.

        Raises:
            subprocess.TimeoutExpired: If it still runs after so many seconds.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
            time.sleep(0.01)
        return self.returncode

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process; one that has ended, though its exit code is not written yet, gets none."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def run_tool(
    arguments: Sequence[object], cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end, with its output as text.

    Args:
        arguments: The tool's file, and its arguments.
        cwd: Its working directory.
        env: All of its environment variables; by default those of the tests.
        timeout: Seconds after which it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, 'out'), Path(folder, 'err')
        process = ToolProcess(arguments, out, err, cwd, env)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(list(arguments), code, out.read_text(), err.read_text())


class Ranks:
    """The processes of one run, as torchrun starts them: if one fails, the others are sent SIGTERM.

    Args:
        arguments: The tool's file, and its arguments but for ``--launcher``.
        log: Each process writes to a file of this name with its rank before the suffix.
        count: Of processes.
        env: All of their environment variables.
        file_size_limit: Bytes that a file may have at most: a disk that becomes full.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        log: Path,
        count: int = 2,
        env: Mapping[str, str] | None = None,
        file_size_limit: int | None = None,
    ) -> None:
        with socket.create_server(('127.0.0.1', 0)) as free:
            meeting = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE=str(count))
        self.logs = [log.with_suffix(f'.{rank}{log.suffix}') for rank in range(count)]
        self.processes = [
            ToolProcess(
                [*arguments, '--launcher', 'pytorch'],
                self.logs[rank],
                env={**(os.environ if env is None else env), **meeting, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
                new_session=True,
                file_size_limit=file_size_limit,
            )
            for rank in range(count)
        ]

    def wait(self, timeout: float = 300) -> list[int]:
        """Wait for all processes to end; returns their exit codes.

        Raises:
            subprocess.TimeoutExpired: If one still runs after so many seconds, or 30 after another one has failed.
        """
        deadline, has_failed = time.monotonic() + timeout, False
        try:
            while None in (codes := [process.poll() for process in self.processes]):
                if any(codes) and not has_failed:
                    has_failed, deadline = True, time.monotonic() + 30
                    self.send_signal(signal.SIGTERM)
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired('ranks', timeout, output=self.output())
                time.sleep(0.02)
        finally:
            self.kill()
        return codes

    def send_signal(self, number: int) -> None:
        """Send a signal to those that run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        """End at once those that run, with their data loaders' workers."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # it ended, and its exit code is not written yet
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def output(self) -> str:
        """What all of them have printed."""
        return ''.join(log.read_text() for log in self.logs)

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Wait until the first process has printed a text."""
        deadline = time.monotonic() + timeout
        while text not in self.logs[0].read_text():
            ended = any(process.poll() is not None for process in self.processes)
            if ended or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f'{text!r} did not come: {self.output()[-3000:]}')
            time.sleep(0.02)


def _running_server() -> subprocess.Popen[str]:
    global _server
    if _server is None:
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        _server = subprocess.Popen(
            [sys.executable, '-W', 'ignore', __file__],
            cwd=ROOT,
            env=os.environ | {'PYTHONPATH': path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(_server.kill)
        assert _server.stdout.readline() == 'ready\n'
    return _server


def _serve() -> None:
    """Fork a process for each request on stdin, until the tests' process is gone."""

    import cvt_dense.apis.predictor
    import cvt_dense.engine.launch  # noqa: F401

    replies = os.fdopen(os.dup(1), 'w')
    print('ready', file=replies, flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    for line in sys.stdin:
        request = json.loads(line)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
            if pid == 0:
                replies.close()
                _become(request)
                return  # to the end of the interpreter, as a program does
            print(pid, file=replies, flush=True)
            _keep(pid, Path(request['exit_code']))


def _keep(pid: int, exit_code: Path) -> None:
    """Wait for a process, and write down how it ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    part = exit_code.with_suffix('.part')
    part.write_text(str(code))
    part.rename(exit_code)
    os._exit(0)


def _become(request: dict) -> None:
    """Run a tool in this process as if Python had been started for it."""
    if request['new_session']:
        os.setsid()
    if request['file_size_limit']:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request['file_size_limit'],) * 2)
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(request['outputs'], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = request['arguments']
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    _serve()
