"What only Ray Serve has: a cluster that ends with its owner, replicas that come and go with the load, a cluster of others"
from __future__ import annotations

import os, signal, socket, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil, pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from conftest import ROOT
from support.ray_cluster import ray_cluster
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.serving.ray.server import CLUSTER_LIMITS, RayServer
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.torchserve.config import Settings
from zztoolkit.serving.torchserve.process import is_alive
from zztoolkit.system import wait_until

pytestmark = pytest.mark.ray

SLOW_DEATH = """
from zztoolkit import Handler
import os, time

class Mortal(Handler):
    "Says which process it is; dies of a word, slowly"
    def preprocess(self, requests): return list(requests)
    def inference(self, xs):
        time.sleep(0.5 if "die" in xs else 0.05)
        if "die" in xs: os._exit(3)
        return xs
    def postprocess(self, xs): return [f"{x} VERSION {os.getpid()}" for x in xs]
"""

def pack_mortal(folder: Path, version: str = "1", **config):
    file = folder / "mortal.py"
    file.write_text(SLOW_DEATH.replace("VERSION", version))
    return pack("mortal", file, version=version, store=folder, example="x", **config)

def predict(server, text: str) -> list[str]: return server.post("mortal", text.encode(), "text/plain").text.split()

@pytest.fixture(scope="module")
def server():
    with RayServer() as server: yield server


def test_nothing_of_ray_in_the_owner(server):
    "The notebook's own process imports no Ray, and Ray listens on the loopback interface alone"
    code = "import sys; from zztoolkit.serving.ray.server import RayServer; RayServer(); print([m for m in sys.modules if m.split('.')[0] == 'ray'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    assert len(family) == 7     # supervisor, GCS, dashboard, raylet, its two agents, controller
    listening = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening

def test_waiting_requests_outlive_a_replica(server, tmp_path):
    "A replica that dies loses the request in its handler; those that waited in it are answered by the next one"
    deploy(server, pack_mortal(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        died = pool.submit(server.post, "mortal", b"die", "text/plain")
        time.sleep(0.2)
        waiting = [pool.submit(server.post, "mortal", b"x", "text/plain") for _ in range(3)]
        assert died.result().status_code == 500
        assert [w.result().status_code for w in waiting] == [200] * 3

def test_replicas_follow_the_load(server, tmp_path):
    "From the least to the greatest number of workers while requests queue; no request fails"
    deploy(server, pack_mortal(tmp_path, "2", workers=1, max_workers=2))
    pids, end = set(), time.monotonic() + 120
    with ThreadPoolExecutor(8) as pool:
        while len(pids) < 2 and time.monotonic() < end:
            answers = list(pool.map(lambda _: predict(server, "x"), range(80)))
            assert {tuple(a[:2]) for a in answers} == {("x", "2")}
            pids = {a[2] for a in answers}
    assert len(pids) == 2

def test_controller_comes_back(server):
    "kill -9 of Ray Serve's controller: requests go on, and the next version loads"
    family = psutil.Process(server.process.pid).children(recursive=True)
    controller = next(p for p in family if "ServeController" in " ".join(p.cmdline()))
    os.kill(controller.pid, signal.SIGKILL)
    assert predict(server, "x")[0] == "x"
    server.scale("mortal", 1)
    assert server.status("mortal").ready == 1

def test_supervisor_killed(tmp_path):
    "kill -9 of the process that owns the cluster: none of its processes is left, and it starts again"
    with RayServer() as server:
        deploy(server, pack_mortal(tmp_path))
        family = psutil.Process(server.process.pid).children(recursive=True)
        os.kill(server.process.pid, signal.SIGKILL)
        assert wait_until(lambda: not any(map(is_alive, family)), 120)      # Ray's agents look after a minute whether Ray is there
        assert not server.running
        with pytest.raises(ToolkitError, match="the server is not running"): server.endpoint("mortal").predict("x")

NOTEBOOKS = [p for p in sorted((ROOT / "nbs" / "serving" / "ray").glob("*.ipynb")) if "skip_exec: true" in p.read_text()]

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks(notebook):
    "Those that need Ray Serve, which nbdev_test leaves out"
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--stdout", "--log-level=ERROR", str(notebook)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

def test_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ToolkitError, match="a port is already in use"): RayServer(Settings(ports=tuple(range(port, port + 5)))).start()

def test_cluster_of_others(tmp_path, monkeypatch):
    "RAY_ADDRESS: the archive travels to the cluster's machines, a swap and a death are as on this one, and only our applications go"
    with ray_cluster() as cluster:
        for name, value in cluster.variables.items(): monkeypatch.setenv(name, value)
        with RayServer() as server:
            assert set(CLUSTER_LIMITS) <= set(server.limits)
            deploy(server, pack_mortal(tmp_path))
            assert predict(server, "x")[:2] == ["x", "1"] and server.status("mortal").ready == 1
            assert server.post("mortal", b"die", "text/plain").json()["message"] == "Worker died."
            deploy(server, pack_mortal(tmp_path, "2"))
            assert predict(server, "x")[:2] == ["x", "2"] and server.versions("mortal") == ["2"]
            broken = tmp_path / "mortal.py"
            broken.write_text(SLOW_DEATH + "    def initialize(self, context):\n        if '/models/' in os.getcwd(): raise KeyError('labels')\n        super().initialize(context)\n")
            with pytest.raises(ToolkitError, match="does not load") as e: deploy(server, pack("mortal", broken, version="3", store=tmp_path, example="x"))
            assert "KeyError: 'labels'" in e.value.found
            assert predict(server, "x")[:2] == ["x", "2"] and "zz-" in cluster.serve("status")
        assert "zz-" not in cluster.serve("status")
