"A real Triton: the server inside nvidia-pytriton's wheel, run as it is on a model repository"
from __future__ import annotations

import os, shutil, signal, subprocess, sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zztoolkit.serving.torchserve.config import free_ports
from zztoolkit.system import environment_without_secrets, wait_until

# Its own environment (Triton's stub ends at the first request under NumPy 2), which sees this one's packages.
HOME = Path(sys.prefix, "triton")
SITE = HOME / Path(*Path(os.__file__).parts[-3:-1]) / "site-packages"


def why_no_triton() -> str:
    "Return why Triton cannot run here, '' if it can"
    if not (SITE / "pytriton").is_dir(): return f"nvidia-pytriton is not installed in {HOME.name} (make ladder does that)"
    try: import tritonclient.http  # noqa: F401
    except (ImportError, RuntimeError): return "tritonclient[http] is not installed"
    return ""


def _write_backend(folder: Path):
    "Lay out the Python backend with the stub for this Python, which pytriton keeps apart"
    own, python = SITE / "pytriton" / "tritonserver", folder / "python"
    python.mkdir(parents=True)
    for file in (own / "backends" / "python").glob("*.*"): (python / file.name).symlink_to(file)
    version = "{}.{}".format(*sys.version_info)
    shutil.copy(own / "python_backend_stubs" / version / "triton_python_backend_stub", python)


def _environment() -> dict[str, str]:
    "Return an environment whose `python3` is the one that the stub shall be"
    known = environment_without_secrets()
    return known | {"PATH": f"{HOME / 'bin'}:{known['PATH']}", "LD_LIBRARY_PATH": str(SITE / "nvidia_pytriton.libs")}


def _command(repository: Path, backends: Path, port: int, options: tuple[str, ...]) -> list[str]:
    return [
        str(SITE / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository}", f"--backend-directory={backends}",
        "--http-address=127.0.0.1", f"--http-port={port}", "--exit-timeout-secs=5",
        "--allow-grpc=false", "--allow-metrics=false", *options]


@contextmanager
def run_triton(repository: Path, folder: Path, *options: str) -> Iterator[str]:
    "Run Triton with more options and yield its address; `folder` gets its log. Raise `AssertionError` if it does not start"
    import tritonclient.http
    _write_backend(folder / "backends")
    (port,), log = free_ports(1), folder / "log"
    with open(log, "w") as out:
        process = subprocess.Popen(_command(repository, folder / "backends", port, options), env=_environment(), stdout=out, stderr=out, start_new_session=True)

    def is_ready() -> bool:
        with suppress(Exception), tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            return client.is_server_ready()
        return False

    try:
        wait_until(lambda: process.poll() is not None or is_ready(), 60)
        assert process.poll() is None and is_ready(), log.read_text()[-4000:]
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired): process.wait(10)
        with suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
        process.wait()
