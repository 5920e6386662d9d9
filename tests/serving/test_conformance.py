"""The conformance suite of servers: what each does with the same archives.

Every test marked `behaviour` is a row of the table in nbs/howto/choosing_a_server.ipynb; its docstring is the row's text.
Expected responses are TorchServe's, which runs beside every other server: statuses, content types and bodies, byte for byte.
What a server cannot do stands in its `limits`, and the entry of `LIMITS` says what happens then.

    pytest tests/serving/test_conformance.py --server mosec     one server; without the option every installed one
    make conformance                                            every server, compared with nbs/records/conformance.json
"""
from __future__ import annotations

import json, os, re, signal, subprocess, sys, threading, time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx, numpy as np, psutil, pytest, torch

from conftest import ROOT
from support.owner import SERVE
from zztoolkit import samples
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.handler.wire import encode_request
from zztoolkit.serving.reloading import reload
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server, SERVERS
from zztoolkit.serving.torchserve.config import Settings
from zztoolkit.system import installed, wait_until

behaviour = pytest.mark.behaviour
INSTALLED = [name for name, kind in SERVERS.items() if not kind.missing]

OCTETS, JSON, TEXT = "application/octet-stream", "application/json", "text/plain"
WORKER_DIED = b'{\n  "code": 500,\n  "type": "InternalServerException",\n  "message": "Worker died."\n}\n'
BAD_TOKEN = {"code": 400, "type": "InvalidKeyException",
             "message": "Token Authorization failed. Token either incorrect, expired, or not provided correctly"}
QUEUE_FULL = {"code": 503, "type": "ServiceUnavailableException",
              "message": 'Model "slow" has no worker to serve inference request. Please use scale workers API to add workers. '
                         "If this is a sequence inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"}

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
BROKEN = ECHO + """
    def initialize(self, context):
        if "/models/" in os.getcwd(): raise KeyError("labels")
        super().initialize(context)
"""
MEETING = """
from zztoolkit import Handler
import threading

second = threading.Event()

class Meeting(Handler):
    "The model is with the first batch until the second has been preprocessed"
    def preprocess(self, requests):
        if "second" in requests: second.set()
        return list(requests)
    def inference(self, xs):
        if "first" in xs: assert second.wait(10), "nobody came"
        return xs
"""
COUNTER = """
from zztoolkit import Handler
import cv2, numpy as np, threadpoolctl

class Counter(Handler):
    "Counts the threads that libraries would use"
    def preprocess(self, requests): return list(requests)
    def inference(self, requests):
        pools = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        return [sorted(pools | {cv2.getNumThreads()}) for _ in requests]
"""
TWO_WORKERS = dict(batchSize=4, maxBatchDelay=100, workers=2, max_workers=2)

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
        "classifier": pack("classifier", ROOT / "handlers" / "imagenet_classifier.py", lite0, store=home,
                           extra_files=[samples.imagenet_labels()], batchSize=4, maxBatchDelay=50),
        "echo": pack_source(home, "echo", ECHO, **TWO_WORKERS),
        "doubler": pack_source(home, "doubler", PLAIN, home / "doubler.pt"),
    }


def pytest_generate_tests(metafunc):
    "Run the tests that need a server for each of them, one server after another"
    if "name" not in metafunc.fixturenames: return
    metafunc.parametrize("name", metafunc.config.getoption("server") or INSTALLED, indirect=True, scope="module")

@pytest.fixture(scope="module")
def name(request) -> str: return request.param

@contextmanager
def start(name: str, archives: dict):
    with make_server(name, Settings(max_request_size=2 << 20)) as server:
        for mar in archives.values(): deploy(server, mar)
        yield server

@pytest.fixture(scope="module")
def reference(archives):
    "TorchServe, whose responses are expected of every server"
    with start("torchserve", archives) as server: yield server

@pytest.fixture(scope="module")
def server(name, reference, archives):
    "The server that a test is about"
    if name == reference.name: yield reference
    else:
        with start(name, archives) as server: yield server

@pytest.fixture(autouse=True)
def version(request, record_property):
    "Record which version of a server was tested"
    if "name" in request.fixturenames: record_property("version", installed(SERVERS[request.getfixturevalue("name")].package))

@pytest.fixture
def limit(server, record_property) -> Callable[[str], bool]:
    "Hold a server to what it says that it cannot do; return whether it says so"
    def check(what: str) -> bool:
        why = server.limits.get(what, "")
        if not why: return False
        if note := LIMITS[what](server): record_property("note", note)
        record_property("no", why)
        return True
    return check


def same(response: httpx.Response) -> tuple:
    "Return what must not differ between servers; an id of the request does"
    body = re.sub(rb'"request_id": "[^"]*"', b'"request_id": "-"', response.content)
    return response.status_code, response.headers.get("content-type"), body

def assert_alike(server, reference, model: str, requests: Sequence[tuple]) -> list[tuple]:
    "Return the responses, which are those of the reference"
    expected = [same(reference.post(model, *r)) for r in requests]
    assert [same(server.post(model, *r)) for r in requests] == expected
    return expected

def open_client(server, timeout: float = 30) -> httpx.Client:
    "Return an HTTP client as another process would have it"
    url, key = server.open_http()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": JSON}
    return httpx.Client(base_url=f"{url}/predictions/", headers=headers, timeout=timeout, trust_env=False)

def outcome(client: httpx.Client, body: bytes) -> tuple:
    "Send a request to `echo`; return its response, or the name of the error"
    try: return same(client.post("echo", content=body))
    except httpx.HTTPError as e: return type(e).__name__, "", b""

@contextmanager
def load(server, body: bytes = b'{"pid": 0, "sleep": 0.01}', timeout: float = 30) -> Iterator[list[tuple]]:
    "Send requests from six clients without a pause; yield their outcomes, which grow"
    stop, outcomes = threading.Event(), list[tuple]()

    def send():
        with open_client(server, timeout) as client:
            while not stop.is_set(): outcomes.append(outcome(client, body))

    with ThreadPoolExecutor(6) as pool:
        sending = [pool.submit(send) for _ in range(6)]
        try: yield outcomes
        finally: stop.set()
        for s in sending: s.result()

def is_gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess): return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True

def has_ended(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess): return is_gone(psutil.Process(pid))
    return True


# What is sent to it

@behaviour("images")
def test_images(server, reference, photos):
    "Images: the responses of twelve photographs, one by one and in batches"
    bodies = [(p.read_bytes(), "image/jpeg") for p in photos if p.stat().st_size < 2 << 20][:12]
    assert len(bodies) == 12
    one_by_one = assert_alike(server, reference, "classifier", bodies)
    assert {r[0] for r in one_by_one} == {200} and len({r[2] for r in one_by_one}) > 5
    with ThreadPoolExecutor(8) as pool:
        labels = pool.map(lambda b: server.post("classifier", *b).json()[0]["label"], bodies)
        assert list(labels) == [json.loads(body)[0]["label"] for _, _, body in one_by_one]

RECORDS = {
    "record": {"user": 7, "tags": ["a", None], "name": "Grüße"},
    "number": 7, "nothing": None, "list in a record": {"xs": [1.5, 2]},
}
ARRAYS = {
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "big array": np.ones((100, 1000), np.float64),
    "tensor": torch.zeros(4, dtype=torch.int64),
}
TEXTS = {"text": "Grüß Gott\n", "empty text": "", "bytes": b"\xff\xfe\x00\x01", "no bytes": b""}

def describe(array) -> dict:
    return {"dtype": str(array.dtype).removeprefix("torch."), "shape": list(array.shape), "sum": float(array.sum())}

@behaviour("records")
def test_records(server, reference):
    "Records and other JSON"
    responses = assert_alike(server, reference, "echo", [encode_request(x, False) for x in RECORDS.values()])
    assert [(r[0], json.loads(r[2])) for r in responses] == [(200, x) for x in RECORDS.values()]

@behaviour("arrays")
def test_arrays(server, reference):
    "Arrays and tensors"
    responses = assert_alike(server, reference, "echo", [encode_request(x, False) for x in ARRAYS.values()])
    assert [(r[0], json.loads(r[2])) for r in responses] == [(200, describe(x)) for x in ARRAYS.values()]

@behaviour("texts")
def test_texts(server, reference):
    "Text and bytes"
    responses = assert_alike(server, reference, "echo", [encode_request(x, False) for x in TEXTS.values()])
    assert [(r[0], r[2]) for r in responses] == [(200, x.encode() if isinstance(x, str) else x) for x in TEXTS.values()]

@behaviour("torchserve handler")
@pytest.mark.parametrize("x, status", [(21, 200), (1, 200), (6.5, 503), (13, 418), (19.5, 503), ("a", 503)])
def test_handler_of_torchserve(server, reference, x, status):
    "A handler written for TorchServe, with TorchServe's own errors where it raises or returns too little"
    response, = assert_alike(server, reference, "doubler", [(json.dumps({"x": x}).encode(), JSON)])
    assert response[0] == status

def post_form(server) -> bytes:
    "Send a file in a form, as a browser does"
    body = b'--part\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\nin a form\r\n--part--\r\n'
    return server.post("echo", body, "multipart/form-data; boundary=part").content

@behaviour("forms")
def test_forms(server, limit):
    "Forms: the handler gets the fields"
    if limit("forms"): return
    assert post_form(server) == b"in a form"

@behaviour("streaming")
def test_streaming(server, limit):
    "A response in parts, as the handler sends them"
    if limit("streaming"): return
    with open_client(server) as client, client.stream("POST", "doubler", content=b'{"x": 52}') as r:
        assert (r.status_code, list(r.iter_raw())) == (200, [b"a part", b"104.0"])

def post_grpc(server, body: bytes) -> bytes:
    "Send a request over gRPC; return the whole message of the response"
    import grpc
    from zztoolkit.serving.torchserve.grpc import encode_grpc_request, GRPC_METHOD
    address = server.address("echo", grpc=True)
    with grpc.insecure_channel(f"127.0.0.1:{address.port}") as channel:
        head = [(key.lower(), value) for key, value in address.headers.items()]
        return channel.unary_unary(GRPC_METHOD)(encode_grpc_request(address.path, body), metadata=head, timeout=30)

@behaviour("grpc")
def test_grpc(server, limit):
    "TorchServe's gRPC"
    if limit("gRPC"): return
    assert post_grpc(server, b"hi there").endswith(b"hi there")


# What is wrong with it

BAD = [(b"{", JSON, 200), (b'{"a": 1}', f"{JSON}; charset=utf-8", 200), (b"hi", "text/csv; charset=utf-8", 200), (b"hi", "image/png", 200),
       (b"\x93NUMPY broken", OCTETS, 400), (b"reject", TEXT, 400), (b"raise", TEXT, 500)]

@pytest.mark.slow
@behaviour("errors")
@pytest.mark.parametrize("body, kind, status", BAD)
def test_errors(server, reference, body, kind, status):
    "Statuses and error bodies of broken, rejected and failing requests"
    response, = assert_alike(server, reference, "echo", [(body, kind)])
    assert response[0] == status

@behaviour("fails alone")
def test_bad_request_fails_alone(server):
    "A bad request fails alone in its batch; the others get their responses"
    alone = same(server.post("echo", b"raise", TEXT))
    bodies = [(b"a", TEXT), (b"raise", TEXT), (b"reject", TEXT), (b'{"pid": 0}', JSON)] * 2
    with ThreadPoolExecutor(8) as pool: answers = list(pool.map(lambda b: server.post("echo", *b), bodies))
    assert [a.status_code for a in answers] == [200, 500, 400, 200] * 2
    assert same(answers[1]) == same(answers[5]) == alone
    assert max(answers[i].json()["batch"] for i in (3, 7)) > 1

@behaviour("unknown model")
def test_unknown_model(server, reference):
    "An unknown model, or version of one, is a 404"
    with open_client(server) as client, open_client(reference) as expected:
        for path in ("nobody", "nobody/1.0", "echo/99"):
            response = same(client.post(path, content=b"1"))
            assert response == same(expected.post(path, content=b"1")) and response[0] == 404, path

@behaviour("large body")
def test_large_body(server, reference):
    "A body that is too large is a 413"
    with open_client(server) as client, open_client(reference) as expected:
        response = same(client.post("echo", content=bytes((2 << 20) + 1)))
        assert response == same(expected.post("echo", content=bytes((2 << 20) + 1))) and response[0] == 413

@behaviour("token")
def test_wrong_token(server):
    "A missing, wrong or ended token is the same 400"
    url, key = server.open_http()
    ended = key[:-1] + ("b" if key[-1] == "a" else "a")
    heads = [{}, *({"Authorization": text} for text in (f"Bearer {ended}", f"Bearer {key}x", f"Bearer {key[:-1]}", f"Basic {key}", key))]
    for path in ("echo", "nobody"):
        responses = [httpx.post(f"{url}/predictions/{path}", content=b"1", headers=h, timeout=30) for h in heads]
        assert {r.status_code for r in responses} == {400} and [r.json() for r in responses] == [BAD_TOKEN] * len(heads)
    with open_client(server) as client: assert client.post("echo", content=b"1").json() == 1


# What goes wrong in it

@pytest.mark.slow
@behaviour("dies")
def test_handler_that_dies(server):
    "A handler that ends its process: its request fails at once, and the worker comes back"
    endpoint = server.endpoint("echo")
    before, started = set(endpoint.status.pids), time.monotonic()
    with ThreadPoolExecutor(1) as pool:     # one batch, one death
        other = pool.submit(endpoint.predict, ["die"], return_exceptions=True)
        died = server.post("echo", b"die", TEXT)
    assert time.monotonic() - started < 10
    assert same(died) == (500, JSON, WORKER_DIED)
    assert "the worker died while it held this request (exit code 3)" in str(other.result()[0])
    assert endpoint.predict("still here") == "still here"
    assert wait_until(lambda: set(endpoint.status.pids) != before and endpoint.status.ready == 2, 30)

@behaviour("killed")
def test_killed_worker(server):
    "A worker that is killed while it works: its requests fail with the reason, and it comes back"
    endpoint = server.endpoint("echo")
    pid = endpoint.predict({"pid": 0})["pid"]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(endpoint.predict, [{"pid": 0, "sleep": 2}], True) for _ in range(2)]
        time.sleep(0.7)
        os.kill(pid, signal.SIGKILL)
        outcomes = [a.result(30)[0] for a in asked]
    assert all(isinstance(o, dict) and o["pid"] != pid or "137" in str(o) for o in outcomes), outcomes
    assert wait_until(lambda: endpoint.status.ready == 2, 30) and has_ended(pid)


# A server in a process of its own, reached over HTTP alone

class Owner:
    "A process that serves `slow`: a queue of three, two seconds for a response"
    def __init__(self, name: str, archive: Path):
        settings = json.dumps({"job_queue_size": 3, "response_timeout": 2})
        command = [sys.executable, "-c", SERVE, name, str(archive), settings]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line, f"{name} did not start: its error is above"
        folder, self.url, key = json.loads(line)
        self.folder, self.headers = Path(folder), {"Authorization": f"Bearer {key}", "Content-Type": JSON}

    def post(self, body: bytes) -> httpx.Response:
        return httpx.post(f"{self.url}/predictions/slow", content=body, headers=self.headers, timeout=30, trust_env=False)

    def family(self) -> list[psutil.Process]: return psutil.Process(self.process.pid).children(recursive=True)

    def __enter__(self) -> Owner: return self
    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path: return pack_source(tmp_path_factory.mktemp("slow"), "slow", ECHO, responseTimeout=2).path

@pytest.fixture(scope="module")
def owner(name, slow):
    with Owner(name, slow) as owner: yield owner

@pytest.mark.slow
@behaviour("hangs")
def test_handler_that_hangs(owner):
    "A handler that never returns loses its request at the response timeout, and its worker"
    pid, started = owner.post(b'{"pid": 0}').json()["pid"], time.monotonic()
    assert same(owner.post(b'{"sleep": 60}')) == (500, JSON, WORKER_DIED)
    assert 1.5 < time.monotonic() - started < 15
    assert wait_until(lambda: has_ended(pid), 20)
    assert wait_until(lambda: owner.post(b'{"pid": 0}').status_code == 200, 30)

@pytest.mark.slow
@behaviour("queue full")
def test_full_queue(owner):
    "A full queue rejects at once with a 503, and finishes the rest"
    with ThreadPoolExecutor(10) as pool: answers = list(pool.map(lambda _: owner.post(b'{"pid": 0, "sleep": 1}'), range(10)))
    rejected = [a for a in answers if a.status_code != 200]
    assert 3 <= len(answers) - len(rejected) <= 6
    assert {a.status_code for a in rejected} == {503} and [a.json() for a in rejected] == [QUEUE_FULL] * len(rejected)
    assert max(a.elapsed.total_seconds() for a in rejected) < 0.5

TURNED_AWAY = {400, 503, "ConnectError", "ReadError", "RemoteProtocolError"}      # the last two: its connection is closed before it is heard

def knock(owner: Owner) -> list:
    "Send requests until the process ends; return statuses and names of errors"
    outcomes = []
    while owner.process.poll() is None:
        try: outcomes.append(owner.post(b'{"pid": 0}').status_code)
        except httpx.HTTPError as e: outcomes.append(type(e).__name__)
        time.sleep(0.05)
    return outcomes

@pytest.mark.slow
@behaviour("drain")
def test_drain_at_sigterm(owner):
    "SIGTERM: requests in flight get their responses, later ones are turned away, and nothing is left"
    family = owner.family()
    assert len(family) >= 2
    with ThreadPoolExecutor(3) as pool:
        in_flight = [pool.submit(owner.post, b'{"pid": 0, "sleep": 1}') for _ in range(3)]     # one at work, two in the queue
        time.sleep(0.7)
        owner.process.terminate()
        later = knock(owner)
        assert [a.result(5).status_code for a in in_flight] == [200] * 3
    assert owner.process.wait(5) == 0
    turned_away = later[next(i for i, o in enumerate(later) if o != 200):]
    assert set(turned_away) <= TURNED_AWAY, later
    assert all(map(is_gone, family)) and not owner.folder.exists()

@pytest.mark.slow
@behaviour("owner killed")
def test_nothing_survives_its_owner(name, slow):
    "kill -9 of the process that serves: no process and no file is left"
    with Owner(name, slow) as owner:
        family = owner.family()
        assert len(family) >= 2
        owner.process.kill()
        owner.process.wait()
        assert wait_until(lambda: all(map(is_gone, family)), 30)
        assert wait_until(lambda: not owner.folder.exists(), 10)


# What changes under load

@behaviour("swap")
def test_swap_under_load(server, tmp_path):
    "A new version under load: no request fails"
    old = server.status("echo").pids
    with load(server) as outcomes:
        deploy(server, pack_source(tmp_path, "echo", ECHO.replace("VERSION", "second"), version="2", **TWO_WORKERS))
        time.sleep(0.3)
    assert {o[0] for o in outcomes} == {200}
    versions = [next(k for k in json.loads(body) if k not in ("pid", "batch")) for _, _, body in outcomes]
    assert (versions[0], versions[-1]) == ("VERSION", "second")
    assert server.versions("echo") == ["2"] and wait_until(lambda: all(map(has_ended, old)), 20)

@pytest.mark.slow
@behaviour("broken version")
def test_broken_version_under_load(server, tmp_path):
    "A version that does not load is rejected with its traceback; the one before serves on"
    def serving():
        status = server.status("echo")
        return status.version, status.ready, set(status.pids)
    before = serving()
    with load(server) as outcomes, pytest.raises(ToolkitError) as e:
        deploy(server, pack_source(tmp_path, "echo", BROKEN, version="3"))
    assert outcomes and {o[0] for o in outcomes} == {200} and serving() == before
    assert "does not load" in str(e.value) and "KeyError: 'labels'" in e.value.found and "the version before still serves" in e.value.do
    assert "in initialize" in e.value.found and "/ts/" not in e.value.found and "zztoolkit/serving" not in e.value.found

def scale(server, workers: int):
    endpoint = server.endpoint("echo")
    endpoint.scale(workers)
    assert wait_until(lambda: (endpoint.status.ready, len(endpoint.status.pids)) == (workers, workers), 20)

@pytest.mark.slow
@behaviour("scale")
def test_scale_under_load(server, limit):
    "More and fewer workers under load: no request fails"
    if not limit("scaling under load"):
        with load(server, b'{"pid": 0, "sleep": 0.1}') as outcomes:
            for n in (1, 2) * 3: scale(server, n)
        assert outcomes and {o[0] for o in outcomes} == {200}
    assert server.endpoint("echo").predict("x") == "x"

@pytest.mark.slow
@behaviour("overlap")
def test_overlap(server, limit, tmp_path):
    "A worker preprocesses its next batch while one is in the model"
    if limit("overlap"): return
    endpoint = deploy(server, pack_source(tmp_path, "meeting", MEETING, example="hello", overlap=True))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(endpoint.predict, "first")
        time.sleep(0.3)
        assert endpoint.predict("second") == "second" and first.result() == "first"
    endpoint.remove()

def test_threads_of_a_worker(server, tmp_path):
    "A worker's libraries (NumPy's BLAS, OpenMP, OpenCV) use the threads of `threads`, not every core"
    endpoint = deploy(server, pack_source(tmp_path, "counter", COUNTER, example="hello", threads=1))
    assert endpoint.predict("hello") == [1]
    endpoint.remove()

@pytest.mark.slow
@behaviour("reload")
def test_reload_and_archive(server, archives, tmp_path):
    "What is served, as an archive again, and reloaded from it with the same responses"
    endpoint = server.endpoint("doubler")
    old, before = endpoint.status, endpoint.predict({"x": 4})
    version = reload(server, old)
    assert server.versions("doubler") == [version] != [old.version] and endpoint.predict({"x": 4}) == before
    assert set(endpoint.archive(tmp_path).files) == set(archives["doubler"].files)


# What can be seen of it

@behaviour("metrics")
def test_metrics(server):
    "Metrics: requests, batches, latency and the time of each stage"
    endpoint = server.endpoint("classifier")
    before = endpoint.read_metrics()
    endpoint.predict([samples.sample_photo()] * 4)
    assert wait_until(lambda: endpoint.read_metrics().requests >= before.requests + 4, 5)
    after = endpoint.read_metrics()
    assert after.batches > before.batches and after.stages["decode"] > before.stages.get("decode", 0)
    assert after.latency > after.queue >= 0 and endpoint.takes_images() is True
    assert "zz_stage_seconds" in server.metrics()

@behaviour("logs")
def test_logs(server):
    "Logs of the workers, with the traceback of a request that failed"
    server.post("echo", b"raise", TEXT)
    def log(): return "".join(server.worker_log("echo"))
    assert wait_until(lambda: "KeyError: 'x'" in log(), 10) and "[PID]" in log()
    assert server.endpoint("echo").logs(2)

def texts(widget) -> Iterator[str]:
    "Yield the texts of a widget and of what is in it"
    yield str(getattr(widget, "value", "")) + str(getattr(widget, "description", ""))
    for child in getattr(widget, "children", ()): yield from texts(child)

@behaviour("panel")
def test_panel(server, limit):
    "The live panel of the notebook"
    from zztoolkit.notebook.panel.panel import show_panel
    if limit("panel"): return
    panel = show_panel(server)
    try:
        panel.poll()
        assert set(server.models()) <= set(re.findall(r"\w+", " ".join(texts(panel.widget))))
    finally: panel.close()

def found_by_others() -> list[str]:
    "Return the folders of the servers that a new process finds"
    code = "from zztoolkit.serving.torchserve.running import running_servers; print(*[s.folder for s in running_servers()])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

@behaviour("found")
def test_found_by_other_processes(server, limit):
    "Another process finds it by itself, as `zz bench NAME` does"
    if limit("other processes"): return
    assert str(server.folder) in found_by_others()


# What happens where a server says that it cannot

def refuse_grpc(server):
    with pytest.raises(ToolkitError, match="has no gRPC"): server.address("echo", grpc=True)

def get_a_form_as_one_body(server):
    body = post_form(server)
    assert body.startswith(b"--part") and b"in a form" in body

def fail_a_response_in_parts(server):
    r = server.post("doubler", b'{"x": 52}', JSON)
    assert (r.status_code, r.json()["message"]) == (503, "Prediction failed")

def be_unseen_by_other_processes(server): assert str(server.folder) not in found_by_others()

def stay_off_the_panel(server):
    from zztoolkit.notebook.panel.panel import show_panel
    with pytest.raises(ToolkitError, match="%serve_panel shows TorchServe's models"): show_panel(server)

def refuse_overlap(server):
    from zztoolkit.notebook.serve import check_overlap
    with pytest.raises(ToolkitError, match="batches do not overlap on"): check_overlap(server)

def lose_requests_when_scaled(server) -> str:
    "Scale until requests fail, twenty times at most: with the error of a worker that died, or without any response"
    with load(server, b'{"pid": 0, "sleep": 0.1}', timeout=8) as outcomes:
        times = 0
        while times < 20 and all(o[0] == 200 for o in outcomes):
            times += 1
            for n in (1, 2):
                try: scale(server, n)
                except ToolkitError as e: assert "ConcurrentModificationException" in e.found    # TorchServe's own, now and then
    scale(server, 2)
    failed = [o for o in outcomes if o[0] != 200]
    assert failed and set(failed) <= {(500, JSON, WORKER_DIED), ("ReadTimeout", "", b"")}, set(failed)
    return f"requests that failed: {len(failed)} of {len(outcomes)}; from two workers to one and back: {times} x"

LIMITS = {
    "scaling under load": lose_requests_when_scaled,
    "overlap": refuse_overlap,
    "gRPC": refuse_grpc,
    "forms": get_a_form_as_one_body,
    "streaming": fail_a_response_in_parts,
    "other processes": be_unseen_by_other_processes,
    "panel": stay_off_the_panel,
}
