"""Tools in processes of their own, forked from one that has imported what they need: the imports take longer than they.

Not from the tests' own process: once that has computed gradients, torch lets none be computed in a fork of it.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
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
        """Send a signal to the process."""
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

    import cvt_dense.apis
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
