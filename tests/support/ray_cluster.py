"A Ray cluster of this machine that is not ours: with cores, a dashboard and a token, as a team would have it"
from __future__ import annotations

import secrets, signal, subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from zztoolkit.folders import temporary_folder
from zztoolkit.serving.torchserve.config import free_ports
from zztoolkit.system import environment_without_secrets, find_program, wait_until


class Cluster:
    "Addresses of a running cluster, and the environment of programs that use it"
    def __init__(self, folder: Path):
        self.port, self.dashboard, self.http, client = free_ports(4)
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "ray").mkdir()
        self.environment = environment_without_secrets() | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_raylet_start_wait_time_s": "120", "ZZ_TOKEN": "open sesame"}
        self.command = [find_program("ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={self.port}", "--num-cpus=4",
                        "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={client}",
                        f"--dashboard-agent-listen-port={free_ports(1)[0]}", f"--object-store-memory={80 << 20}"]

    @property
    def address(self) -> str: return f"127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]: return {k: v for k, v in self.environment.items() if k.startswith("RAY_")} | {"RAY_ADDRESS": self.address}

    def serve(self, *args: str) -> str:
        "Run the program `serve` against the dashboard, and return what it prints"
        command = [find_program("serve"), *args, "-a", f"http://127.0.0.1:{self.dashboard}"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    def is_up(self) -> bool:
        try: return httpx.get(f"http://127.0.0.1:{self.dashboard}/api/version", trust_env=False).status_code in (200, 401)
        except httpx.HTTPError: return False


@contextmanager
def ray_cluster() -> Iterator[Cluster]:
    with temporary_folder("zz-cluster-") as folder:
        cluster = Cluster(folder)
        with open(folder / "console.log", "w") as console:
            ray = subprocess.Popen(cluster.command, env=cluster.environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True)
        try:
            text = lambda: (folder / "console.log").read_text()
            assert wait_until(lambda: ray.poll() is not None or "Ray runtime started" in text() and cluster.is_up(), 240) and ray.poll() is None, text()
            yield cluster
        finally:
            ray.send_signal(signal.SIGTERM)
            try: ray.wait(30)
            except subprocess.TimeoutExpired: ray.kill()
            ray.wait()
