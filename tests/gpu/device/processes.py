"""Start a process with a limit of time, and end it with everything that it started."""
from __future__ import annotations

import contextlib, os, signal, subprocess, time, uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OUT_OF_TIME = "out of time"


class Child:
    """A process that may take `limit` seconds.

    Its environment carries a mark of its own, which everything that it starts inherits: nothing
    escapes the end, whatever session or process group it has moved to.
    """
    def __init__(
        self,
        command: Sequence[str],
        limit: float,                               # seconds
        env: Mapping[str, str] | None = None,       # default: this process's
        **options: Any,                             # of Popen
    ):
        self.limit, self.started = limit, time.monotonic()
        name = f"ZZ_GPU_{uuid.uuid4().hex}"
        self.mark = f"{name}=1"
        environment = dict(os.environ if env is None else env) | {name: "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **options)

    @property
    def seconds(self) -> float: return time.monotonic() - self.started

    def wait(self) -> int | str:
        "Return the exit code, or OUT_OF_TIME. Nothing that it started runs afterwards"
        code: int | str = OUT_OF_TIME
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(max(0.1, self.limit - self.seconds))
        self.kill()
        return code

    def kill(self):
        "End every process that carries the mark. One that hangs in a driver cannot be waited for"
        for _ in range(40):
            self.process.poll()
            pids = find_marked(self.mark)
            for pid in pids:
                with contextlib.suppress(OSError): os.kill(pid, signal.SIGKILL)
            if not pids: return
            time.sleep(0.05)


def find_marked(mark: str) -> list[int]:
    "Return the processes with `mark` (NAME=value) in their environment"
    files = Path("/proc").glob("[0-9]*/environ")
    return [int(file.parent.name) for file in files if mark in read_environment(file)]


def read_environment(path: Path) -> list[str]:
    "Return a process's variables; none of one that has ended, or is somebody else's"
    try: return path.read_text(errors="replace").split("\0")
    except OSError: return []


def describe_exit(code: int | str) -> str:
    "Say how a process ended: ok, exit code 3, ended by SIGSEGV, out of time"
    if isinstance(code, str): return code
    if code == 0: return "ok"
    if code > 0: return f"exit code {code}"
    return f"ended by {signal.Signals(-code).name}"
