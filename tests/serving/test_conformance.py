"""What every server does alike with the same archives: responses, errors, deaths, swaps and drains.

Expected responses are those of the first server, TorchServe: bodies, content types and statuses, byte for byte.
A server that cannot do something says so in its `limits`.
"""
from __future__ import annotations

import json, os, re, shutil, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np, psutil, pytest, torch

from support.owner import OWNER
from zztoolkit import samples
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.handler.wire import encode_request
from zztoolkit.serving.reloading import reload
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server, SERVERS
from zztoolkit.serving.torchserve.config import Settings
from zztoolkit.serving.torchserve.running import running_servers
from zztoolkit.system import installed, wait_until

HANDLERS = Path(__file__).parent.parent.parent / "handlers"
BOTH = [name for name, kind in SERVERS.items() if installed(kind.package)]
assert set(BOTH) == set(SERVERS), "every server is installed where this suite runs"
on_each_server = pytest.mark.parametrize("name", BOTH)

ECHO = """
from zztoolkit import Handler, RequestError
import os, time

class Echo(Handler):
    "Returns what it was sent; some words make it fail"
    def preprocess(self, requests): return list(requests)
    def inference(self, xs):
        time.sleep(max(self.seconds(x) for x in xs))
        if any(isinstance(x, str) and x == "die" for x in xs): os._exit(3)
        self.batch = len(xs)
        return xs
    def seconds(self, x): return x.get("sleep", 0) if isinstance(x, dict) else 0
    def postprocess(self, xs): return [self.answer(x) for x in xs]
    def answer(self, x):
        if isinstance(x, str) and x == "reject": raise RequestError("it's <no> good: ü")
        if isinstance(x, str) and x == "raise": raise KeyError("x")
        if isinstance(x, (bytes, bytearray)): return bytes(x)
        if hasattr(x, "dtype"): return {"dtype": str(x.dtype), "shape": x.shape, "sum": float(x.sum())}
        return {"VERSION": 1, "pid": os.getpid(), "batch": self.batch} if isinstance(x, dict) and "pid" in x else x
"""

PLAIN = """
import torch
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException

class Doubler(BaseHandler):
    "A handler that knows nothing of zztoolkit"
    def preprocess(self, data): return torch.tensor([float(row["body"]["x"]) for row in data])
    def postprocess(self, outputs):
        if 13 in outputs: raise ValueError("a bad number")
        if 104 in outputs: send_intermediate_predict_response(["a part"], self.context.request_ids, "Intermediate", 200, self.context)
        if 26 in outputs: raise PredictionException("it's custom", 418)
        if 39 in outputs: return []
        return [{"doubled": y} for y in outputs.tolist()] if 42 in outputs else outputs.tolist()
"""


class Doubler(torch.nn.Module):
    def forward(self, x): return x * 2


def pack_source(folder: Path, name: str, source: str, *args, **config):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    return pack(name, folder / f"{name}.py", *args, store=folder, **config)

@pytest.fixture(scope="module")
def archives(tmp_path_factory, lite0):
    "The archives that every server gets"
    home = tmp_path_factory.mktemp("archives")
    torch.jit.script(Doubler()).save(str(home / "doubler.pt"))
    return {
        "classifier": pack("classifier", HANDLERS / "imagenet_classifier.py", lite0, store=home,
                           extra_files=[samples.imagenet_labels()], batchSize=4, maxBatchDelay=50),
        "echo": pack_source(home, "echo", ECHO, batchSize=4, maxBatchDelay=100, workers=2, max_workers=2),
        "doubler": pack_source(home, "doubler", PLAIN, home / "doubler.pt"),
    }

@pytest.fixture(scope="module")
def servers(archives):
    "One server of each kind, with the same models"
    with ExitStack() as stack:
        started = {name: stack.enter_context(make_server(name, Settings(max_request_size=2 << 20))) for name in BOTH}
        jobs = [(s, mar) for mar in archives.values() for s in started.values()]
        for server, mar in jobs: deploy(server, mar)
        yield started


def same(response) -> tuple:
    "Return what must not differ between servers; an id of the request does"
    body = re.sub(rb'"request_id": "[^"]*"', b'"request_id": "-"', response.content)
    return response.status_code, response.headers.get("content-type"), body

def responses(servers, model: str, requests: list) -> dict[str, list]:
    "Return each server's responses, one request at a time"
    return {name: [same(s.post(model, *r)) for r in requests] for name, s in servers.items()}

def assert_alike(by_server: dict[str, list]) -> list:
    "Return the responses, which are those of every server"
    first, *others = by_server.values()
    for other in others: assert other == first
    return first


def test_images(servers, photos):
    "Twelve photographs, each with its response; one after the other, and in batches"
    bodies = [(p.read_bytes(), "image/jpeg") for p in photos if p.stat().st_size < 2 << 20][:12]
    assert len(bodies) == 12
    one_by_one = assert_alike(responses(servers, "classifier", bodies))
    assert {r[0] for r in one_by_one} == {200} and len({r[2] for r in one_by_one}) > 5
    with ThreadPoolExecutor(8) as pool:
        for s in servers.values():
            answers = pool.map(lambda b: s.post("classifier", *b).json()[0]["label"], bodies)
            assert list(answers) == [json.loads(body)[0]["label"] for _, _, body in one_by_one]

VALUES = {
    "record": {"user": 7, "tags": ["a", None], "name": "Grüße"}, "number": 7, "nothing": None, "list in a record": {"xs": [1.5, 2]},
    "text": "Grüß Gott\n", "empty text": "", "bytes": b"\xff\xfe\x00\x01", "empty": b"",
    "array": np.arange(6, dtype=np.float32).reshape(2, 3), "big array": np.ones((100, 1000), np.float64), "tensor": torch.zeros(4, dtype=torch.int64),
}

def test_values(servers):
    "Records, text, arrays, bytes"
    requests = [encode_request(x, False) for x in VALUES.values()]
    for what, response in zip(VALUES, assert_alike(responses(servers, "echo", requests))): assert response[0] == 200, what

@pytest.mark.parametrize("body, kind", [
    (b"{", "application/json"), (b'{"a": 1}', "application/json; charset=utf-8"), (b"hi", "text/plain"), (b"hi", "text/csv; charset=utf-8"),
    (b"hi", "image/png"), (b"\x93NUMPY broken", "application/octet-stream"), (b"reject", "text/plain"), (b"raise", "text/plain")])
def test_content_types_and_errors(servers, body, kind):
    "A body that is not what it is said to be; a request that a handler rejects, or fails on"
    assert_alike(responses(servers, "echo", [(body, kind)]))

@pytest.mark.parametrize("x, status", [(21, 200), (1, 200), (6.5, 503), (13, 418), (19.5, 503), ("a", 503)])
def test_handler_of_torchserve(servers, x, status):
    "A BaseHandler: its JSON, and TorchServe's own errors where it raises or returns too little"
    response, = assert_alike(responses(servers, "doubler", [(json.dumps({"x": x}).encode(), "application/json")]))
    assert response[0] == status

def test_unknown_model_and_large_body(servers):
    assert assert_alike(responses(servers, "nobody", [(b"x",)]))[0][0] == 404
    assert assert_alike(responses(servers, "echo", [(bytes((2 << 20) + 1),)]))[0][0] == 413


@on_each_server
def test_bad_request_fails_alone(servers, name):
    "Four in one batch: the bad one gets the error that it gets alone, the others their responses"
    server = servers[name]
    alone = same(server.post("echo", b"raise", "text/plain"))
    with ThreadPoolExecutor(8) as pool:
        bodies = [(b"a", "text/plain"), (b"raise", "text/plain"), (b"reject", "text/plain"), (b'{"pid": 0}', "application/json")] * 2
        answers = list(pool.map(lambda b: server.post("echo", *b), bodies))
    assert [a.status_code for a in answers] == [200, 500, 400, 200] * 2
    assert same(answers[1]) == same(answers[5]) == alone
    assert max(answers[i].json()["batch"] for i in (3, 7)) > 1

@on_each_server
def test_worker_that_dies(servers, name):
    "os._exit in a batch: its request fails at once, the other worker goes on, and the dead one comes back"
    server, endpoint = servers[name], servers[name].endpoint("echo")
    before = set(endpoint.status.pids)
    started = time.monotonic()
    died = server.post("echo", b"die", "text/plain")
    assert time.monotonic() - started < 2
    assert same(died)[:2] == (500, "application/json") and died.json() == {"code": 500, "type": "InternalServerException", "message": "Worker died."}
    assert endpoint.predict("still here") == "still here"
    assert wait_until(lambda: len(set(endpoint.status.pids) - before) == 1 and endpoint.status.ready == 2, 30)
    with pytest.raises(ToolkitError, match=r"the worker died while it held this request \(exit code 3\)"): endpoint.predict("die")
    assert wait_until(lambda: endpoint.status.ready == 2, 30)

@on_each_server
def test_killed_worker(servers, name):
    "kill -9 while it works"
    endpoint = servers[name].endpoint("echo")
    pid = endpoint.predict({"pid": 0})["pid"]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(endpoint.predict, [{"pid": 0, "sleep": 2}], True) for _ in range(2)]
        time.sleep(0.7)
        os.kill(pid, signal.SIGKILL)
        outcomes = [a.result(30)[0] for a in asked]
    assert all(isinstance(o, dict) and o["pid"] != pid or "137" in str(o) for o in outcomes), outcomes
    assert wait_until(lambda: endpoint.status.ready == 2, 30) and not psutil.pid_exists(pid)

@on_each_server
def test_swap_under_load(servers, name, archives, tmp_path):
    "A new version under load, then a broken one: no request fails, and the second stays"
    server, stop, failed, versions = servers[name], threading.Event(), [], []

    def client():
        while not stop.is_set():
            try:
                r = server.post("echo", b'{"pid": 0, "sleep": 0.01}', "application/json")
                versions.append(next(k for k in r.json() if k not in ("pid", "batch")))
            except Exception as e: failed.append(e)
            else: r.status_code == 200 or failed.append(same(r))

    clients = [threading.Thread(target=client) for _ in range(6)]
    for c in clients: c.start()
    try:
        old = server.status("echo").pids
        deploy(server, pack_source(tmp_path, "echo", ECHO.replace("VERSION", "second"), version="2"))
        broken = ECHO + "    def initialize(self, context):\n        if '/models/' in os.getcwd(): raise KeyError('labels')\n        super().initialize(context)\n"
        with pytest.raises(ToolkitError) as e:
            deploy(server, pack_source(tmp_path, "echo", broken, version="3"))
        assert "does not load" in str(e.value) and "KeyError: 'labels'" in e.value.found and "the version before still serves" in e.value.do
        assert "in initialize" in e.value.found and "/ts/" not in e.value.found and "zztoolkit/serving" not in e.value.found
        time.sleep(0.3)
    finally:
        stop.set()
        for c in clients: c.join()
    assert not failed and {"VERSION", "second"} == set(versions) and versions[-1] == "second"
    assert server.versions("echo") == ["2"] and not any(map(psutil.pid_exists, old))
    deploy(server, pack_source(tmp_path, "echo", ECHO, version="4", batchSize=4, maxBatchDelay=100, workers=2, max_workers=2))

@on_each_server
def test_scale_under_load(servers, name):
    "From two workers to one and back: no request fails, unless the server says that it may"
    server, endpoint, stop, failed = servers[name], servers[name].endpoint("echo"), threading.Event(), []

    def client():
        while not stop.is_set():
            try: r = server.post("echo", b'{"pid": 0}', "application/json")
            except Exception as e: failed.append(e)
            else: r.status_code == 200 or failed.append(same(r))

    clients = [threading.Thread(target=client) for _ in range(0 if "scaling under load" in server.limits else 4)]
    for c in clients: c.start()
    for n in (1, 2):
        endpoint.scale(n)
        assert wait_until(lambda: (endpoint.status.ready, len(endpoint.status.pids)) == (n, n), 10)
    stop.set()
    for c in clients: c.join()
    assert not failed and endpoint.predict("x") == "x"

@on_each_server
def test_counts(servers, name):
    "Requests, batches and the stages' times, and what the handler reports of itself"
    endpoint = servers[name].endpoint("classifier")
    before = endpoint.read_metrics()
    endpoint.predict([samples.sample_photo()] * 4)
    assert wait_until(lambda: endpoint.read_metrics().requests >= before.requests + 4, 5)
    after = endpoint.read_metrics()
    assert after.batches > before.batches and after.stages["decode"] > before.stages["decode"]
    assert after.latency > after.queue >= 0 and endpoint.takes_images() is True
    assert "[PID]" in "".join(servers[name].worker_log("classifier")) and endpoint.logs(2)

@on_each_server
def test_reload_and_archive(servers, name, archives, tmp_path):
    "What is served, packed again: the same responses as a new version, and an archive with the same files"
    server, endpoint = servers[name], servers[name].endpoint("doubler")
    old, before = endpoint.status, endpoint.predict({"x": 4})
    version = reload(server, old)
    assert server.versions("doubler") == [version] != [old.version] and endpoint.predict({"x": 4}) == before
    assert set(endpoint.archive(tmp_path).files) == set(archives["doubler"].files)

def refuse_grpc(server):
    with pytest.raises(ToolkitError, match="mosec has no gRPC"): server.address("echo", grpc=True)

def get_a_form_as_one_body(server):
    assert server.post("echo", b"a=1&b=2", "application/x-www-form-urlencoded").content == b"a=1&b=2"

def fail_a_response_in_parts(server):
    r = server.post("doubler", b'{"x": 52}', "application/json")
    assert (r.status_code, r.json()["message"]) == (503, "Prediction failed")

def be_unseen_by_other_processes(server):
    assert server.folder not in [s.folder for s in running_servers()]

def stay_off_the_panel(server):
    from zztoolkit.notebook.panel.panel import show_panel
    with pytest.raises(ToolkitError, match="%serve_panel shows TorchServe's models"): show_panel(server)

def refuse_overlap(server):
    from zztoolkit.notebook.serve import check_overlap
    with pytest.raises(ToolkitError, match="batches do not overlap"): check_overlap(server)

def lose_a_request_when_scaled(server): "Left out by `test_scale_under_load`; it happens now and then, so nothing can ask for it"

LIMITS = {"scaling under load": lose_a_request_when_scaled, "gRPC": refuse_grpc, "forms": get_a_form_as_one_body, "streaming": fail_a_response_in_parts,
          "overlap": refuse_overlap, "other processes": be_unseen_by_other_processes, "panel": stay_off_the_panel}

@on_each_server
def test_limits(servers, name):
    "Each thing that a server says it cannot do: refused, or done in the way it says"
    assert set(servers[name].limits) <= set(LIMITS)
    for what in servers[name].limits: LIMITS[what](servers[name])

def test_pins():
    "The version that an error names is the one that is installed"
    for kind in SERVERS.values(): assert installed(kind.package) == kind.pin

@pytest.mark.parametrize("victim", ["owner", "supervisor"])
def test_nothing_survives_mosecs_owner(archives, victim):
    "kill -9 of the process that started mosec, or of its supervisor: no process and no file (TorchServe: test_serving.py)"
    command = [sys.executable, "-c", OWNER, "mosec", str(archives["doubler"].path)]
    owner, folder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), ""
    try:
        folder, supervisor = json.loads(owner.stdout.readline())
        family = [psutil.Process(supervisor), *psutil.Process(supervisor).children(recursive=True)]
        assert len(family) == 4     # mosec's front, a guard and its worker
        os.kill(owner.pid if victim == "owner" else supervisor, signal.SIGKILL)
        assert wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 15)
        if victim == "owner": assert wait_until(lambda: not Path(folder).exists(), 5)
    finally:
        owner.kill()
        owner.wait()
        if folder: shutil.rmtree(folder, ignore_errors=True)     # with the supervisor killed, the owner would have tidied it

@pytest.mark.parametrize("part", ["front", "guard"])
def test_parts_of_mosec_come_back(servers, part):
    "kill -9 of mosec's own program, or of a guard with its worker: requests wait for the next one"
    server, endpoint = servers["mosec"], servers["mosec"].endpoint("doubler")
    worker = psutil.Process(endpoint.status.pids[0])
    os.kill(server.state(server._serving["doubler"])["front"] if part == "front" else worker.ppid(), signal.SIGKILL)
    assert wait_until(lambda: not psutil.pid_exists(worker.pid), 10)
    assert endpoint.predict({"x": 4}) == 8

@on_each_server
def test_hang_full_queue_and_drain(name, tmp_path):
    """A handler that never returns loses its worker and its request. Of ten at once, those that find no place are rejected.
    A stop finishes the rest, and leaves no process and no file.
    """
    slow = pack_source(tmp_path, "slow", ECHO, responseTimeout=2)
    with make_server(name, Settings(job_queue_size=3, response_timeout=2)) as server:
        endpoint, folder = deploy(server, slow), server.folder
        pid = endpoint.predict({"pid": 0})["pid"]
        r = server.post("slow", b'{"sleep": 60}', "application/json")
        assert (r.status_code, r.json()["message"]) == (500, "Worker died.")
        assert wait_until(lambda: not psutil.pid_exists(pid), 20)
        endpoint.wait_ready()
        processes = psutil.Process(server.process.pid).children(recursive=True)
        assert len(processes) >= 2
        with ThreadPoolExecutor(10) as pool:
            asked = [pool.submit(server.post, "slow", b'{"pid": 0, "sleep": 0.5}', "application/json") for _ in range(10)]
            time.sleep(0.6)
            assert server.stop()
            answers = [a.result(5) for a in asked]
    rejected = [a for a in answers if a.status_code != 200]
    assert 3 <= len(answers) - len(rejected) <= 6
    assert {(a.status_code, a.json()["type"]) for a in rejected} == {(503, "ServiceUnavailableException")}
    assert "has no worker to serve inference request" in rejected[0].json()["message"]
    assert not folder.exists() and not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
    with pytest.raises(ToolkitError, match="not running"): endpoint.predict({"pid": 0})
