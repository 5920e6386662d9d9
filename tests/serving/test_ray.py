"What only Ray Serve has: a cluster that ends with its owner, replicas that come and go with the load, a cluster of others"
from __future__ import annotations

import os, signal, socket, subprocess, sys, threading, time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil, pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from conftest import ROOT
from support.ray_cluster import ray_cluster
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.serving.ray import server as ray_server
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

IMPATIENT = "from zztoolkit.serving.ray import plan; plan.SCALING.update(look_back_period_s=11, upscale_delay_s=1, downscale_delay_s=2); "

@pytest.fixture(scope="module")
def server():
    "Ray on which replicas come and go a second or two after the load, not five and sixty"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_server, "_SUPERVISE", IMPATIENT + ray_server._SUPERVISE)
        server = RayServer().start()
    with server: yield server


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

GRADES = """
from zztoolkit import Pipeline, Stage
import time

def number(request): return request["x"]

def grade(x):
    time.sleep(0.05)
    return x

class Grades(Pipeline):
    stages = (Stage("number", number), Stage("grade", grade, workers=(1, 2)))
"""

def pack_grades(folder: Path):
    (folder / "grades.py").write_text(GRADES)
    return pack("grades", folder / "grades.py", store=folder, example={"x": 1})

@contextmanager
def clients(server, n: int) -> Iterator[list[tuple[int, str]]]:
    "Half of them send to the model, half to the pipeline, during the block; yields status and text of the responses"
    responses, over = [], threading.Event()
    def send(name: str, body: bytes, kind: str):
        while not over.is_set():
            r = server.post(name, body, kind)
            responses.append((r.status_code, r.text))
    with ThreadPoolExecutor(n) as pool:
        sent = [pool.submit(send, *(("mortal", b"x", "text/plain"), ("grades", b'{"x": 7}', "application/json"))[i % 2]) for i in range(n)]
        try: yield responses
        finally: over.set()
    for s in sent: s.result()

def test_replicas_follow_the_load(server, tmp_path):
    "Four times the load and back: replicas of a model 1 → 3 → 1, of one stage of a pipeline 1 → 2 → 1; no request fails"
    deploy(server, pack_mortal(tmp_path, "2", workers=1, max_workers=3))
    deploy(server, pack_grades(tmp_path))
    def replicas() -> tuple: return server.status("mortal").workers, server.status("grades").stage_workers["grade"]
    with clients(server, 4) as steady:
        assert wait_until(lambda: len(steady) > 50, 30) and replicas() == (1, (1, 1))
        with clients(server, 12) as more: assert wait_until(lambda: replicas() == (3, (2, 2)), 120, every=0.2)
        assert wait_until(lambda: replicas() == (1, (1, 1)), 120, every=0.2)
    assert {(status, text.split()[0]) for status, text in [*steady, *more]} == {(200, "x"), (200, "7")}
    assert len(server.status("grades").pids) == 2

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
