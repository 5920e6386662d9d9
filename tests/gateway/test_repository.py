"Many models on one server: loaded when a request asks for them, within a budget, with as many workers as they need."
from __future__ import annotations

import random, threading, time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZipFile

import httpx, pytest, tritonclient.grpc as grpcclient, tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from support.scale import copy, SCALE
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.gateway import Gateway, ModelRepository, Scaling
from zztoolkit.serving.server import make_server
from zztoolkit.system import wait_until

FAST = Scaling(queue=0.025, up_after=0.3, down_after=1, busy=0.9, every=0.1)
NAMES = [f"m{i:02}" for i in range(20)]


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    (folder / "scale.py").write_text(SCALE)
    return pack("scale", folder / "scale.py", store=folder, example="1").path

@pytest.fixture
def folder(scale, tmp_path):
    "Twenty archives, and what breaks: a handler, a file, a model that is larger than any budget here"
    for name in (*NAMES, "broken", "giant"): copy(scale, tmp_path, name)
    (tmp_path / "torn.mar").write_bytes(scale.read_bytes()[:300])
    return tmp_path

@pytest.fixture(scope="module")
def mosec():
    with make_server("mosec") as server: yield server

@pytest.fixture(scope="module")
def one(mosec, scale, tmp_path_factory):
    "Bytes that one of the models takes"
    folder = tmp_path_factory.mktemp("one")
    for name in ("first", "second"): copy(scale, folder, name)
    return measure_second(mosec, folder, "first", "second")

def measure_second(server, folder: Path, *names: str) -> int:
    with ModelRepository(server, folder, "10GB") as repository:
        for name in names: repository.predict(name, "1")
        return repository.models[names[-1]].memory


@dataclass
class Client:
    "Sends requests, and remembers what came back"
    gateway: Gateway
    responses: list[tuple[str, int, float]] = field(default_factory=list)      # model, status, seconds
    bodies: list[str] = field(default_factory=list)

    def send(self, name: str) -> httpx.Response:
        begin = time.perf_counter()
        r = self.http.post(f"/predictions/{name}", content=b"1", headers={"content-type": "text/plain"})
        self.responses.append((name, r.status_code, time.perf_counter() - begin))
        assert r.status_code != 200 or r.json() == {"model": name}
        return r

    def __post_init__(self):
        self.http = httpx.Client(base_url=self.gateway.url, headers=self.gateway.headers, timeout=100, trust_env=False)

    @property
    def failed(self) -> list: return [r for r in self.responses if r[1] != 200]

@contextmanager
def clients(gateway: Gateway, *names: str, pause: float = 0) -> Iterator[list[Client]]:
    "Clients that each send one request after another for a model during the block"
    those, over = [Client(gateway) for _ in names], threading.Event()
    def run(client: Client, name: str):
        while not over.wait(pause): client.send(name)
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        runs = [pool.submit(run, *pair) for pair in zip(those, names)]
        try: yield those
        finally: over.set()
    for r in runs: r.result()

@contextmanager
def serving(server, folder, memory, **options) -> Iterator[tuple[ModelRepository, Gateway]]:
    with ModelRepository(server, folder, memory, **options) as repository, Gateway(server, repository) as gateway:
        yield repository, gateway
        gateway.stop()

def on_server(repository: ModelRepository) -> set[str]: return set(repository.server.models())

def value(gateway: Gateway, metric: str) -> float:
    "Return the sum of a metric over the models"
    text = httpx.get(f"{gateway.url}/metrics", headers=gateway.headers).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(metric))


# The budget

@pytest.mark.slow
def test_twenty_models_in_memory_for_five(mosec, folder, one):
    "Each twice, in random order, by four clients: all respond, at no time are there more than the budget. What they grow by is less than half a model"
    with serving(mosec, folder, int(5.5 * one)) as (repository, gateway):
        over, loaded, sizes = threading.Event(), [], []
        def watch():
            while not over.wait(0.01):
                sizes.append(repository.claimed)
                loaded.append(len(on_server(repository)))
        def run(seed: int) -> Client:
            client, names = Client(gateway), NAMES * 2
            random.Random(seed).shuffle(names)
            for name in names: client.send(name)
            return client
        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(4) as pool: done = list(pool.map(run, range(4)))
        over.set()
        watcher.join()
        assert not [f for c in done for f in c.failed] and sum(len(c.responses) for c in done) == 160
        assert max(sizes) <= repository.budget and 4 <= max(loaded) <= 5
        loads, unloads = value(gateway, "zz_model_load_seconds_count"), value(gateway, "zz_model_unloads_total")
        assert loads >= 20 and loads - unloads == len(on_server(repository))
        assert value(gateway, "zz_model_load_failures_total") == 0 and value(gateway, "zz_memory_budget_bytes") == repository.budget
        rows = {row[0]: row for row in repository.status().rows}
        assert all(rows[n][1] in ("loaded", "on disk") and float(rows[n][5].removesuffix(" s")) > 0 for n in NAMES)

def test_the_least_recently_used_goes_first(mosec, folder, one):
    with serving(mosec, folder, int(3.5 * one)) as (repository, gateway):
        client = Client(gateway)
        for name in ("m00", "m01", "m02", "m00"): client.send(name)
        assert on_server(repository) == {"m00", "m01", "m02"}
        client.send("m03")
        assert on_server(repository) == {"m00", "m02", "m03"}
        client.send("m04")
        assert on_server(repository) == {"m00", "m03", "m04"} and not client.failed

@pytest.mark.slow
def test_larger_than_the_budget(mosec, folder, one):
    "Measured once; then it is known until its file changes, and the others stay"
    with serving(mosec, folder, int(3.5 * one)) as (repository, gateway):
        client = Client(gateway)
        client.send("m00")
        loads = []
        for _ in range(3):
            r = client.send("giant")
            assert r.status_code == 507 and "giant is larger than the memory for all models: it takes " in r.text
            loads.append(value(gateway, "zz_model_load_failures_total"))
        assert loads == [1, 1, 1] and on_server(repository) <= {"m00"}
        assert client.send("m01").status_code == 200
        with ZipFile(folder / "m02.mar", "a") as z: z.writestr("data", bytes(repository.budget))    # of which the files alone do not fit
        assert wait_until(lambda: repository.models["m02"].archive.size > repository.budget, 10)
        assert "its files have" in client.send("m02").text

def test_a_model_that_grows_in_use(mosec, folder, one, scale, monkeypatch):
    "Idle ones go for it, at once; its next load makes room for all that it took. With a request in flight everywhere it is over the budget until one ends"
    monkeypatch.setattr("zztoolkit.gateway.repository.scaling.WEIGHED_EVERY", 0)
    copy(scale, folder, "hungry")
    with serving(mosec, folder, int(5.5 * one), scaling=FAST) as (repository, gateway):
        client = Client(gateway)
        for name in ("m00", "m01", "m02", *["hungry"] * 4): client.send(name)       # which takes four then
        assert wait_until(lambda: on_server(repository) == {"m02", "hungry"}, 20)
        for name in ("m02", *NAMES[3:7]): client.send(name)
        assert on_server(repository) == {"m02", *NAMES[3:7]}
        client.send("hungry")
        assert on_server(repository) == {"m06", "hungry"} and repository.models["hungry"].memory > 3 * one
        assert repository.claimed <= repository.budget and not client.failed
        with repository.use("m06"), repository.use("hungry"):
            for _ in range(6): client.send("hungry")
            assert wait_until(lambda: repository.claimed > repository.budget, 20) and on_server(repository) == {"m06", "hungry"}
        assert wait_until(lambda: repository.claimed <= repository.budget, 20) and not client.failed

# What breaks

@pytest.mark.slow
def test_broken_archives_fail_alone(mosec, folder, one, scale):
    "With the reason, without a second try; a repaired file is taken"
    with serving(mosec, folder, int(3.5 * one)) as (repository, gateway), clients(gateway, "m00") as [steady]:
        client = Client(gateway)
        for _ in range(3):
            r = client.send("broken")
            assert r.status_code == 503 and "ImportError: no module named nowhere" in r.text
        assert client.send("torn").status_code == 503 and "is not a model archive, or is damaged" in client.send("torn").text
        assert client.send("nowhere").json() == {"error": "no such model: nowhere"} and client.responses[-1][1] == 404
        assert value(gateway, "zz_model_load_failures_total") == 1
        assert "broken: broken version 1.0 does not load in a mosec worker: ImportError" in str(repository.status())
        with pytest.raises(ToolkitError, match="no module named nowhere"): repository.predict("broken", "1")
        http = Client(gateway).http
        assert http.get("/v2/health/ready").json() == {"ready": True} and not http.get("/v2/models/broken/ready").json()["ready"]
        copy(scale, folder, "torn")
        assert client.send("torn").status_code == 200
    assert len(steady.responses) > 20 and not steady.failed

@pytest.mark.slow
def test_fifty_first_requests_are_one_load(mosec, folder):
    with serving(mosec, folder, "1GB") as (repository, gateway):
        with ThreadPoolExecutor(50) as pool: statuses = list(pool.map(lambda _: Client(gateway).send("m00").status_code, range(50)))
        assert statuses == [200] * 50 and value(gateway, "zz_model_load_seconds_count") == 1

def is_idle(repository: ModelRepository) -> bool: return not any(u.in_flight for u in repository.read_uses().values())

def test_a_request_that_is_late_is_not_counted(mosec, folder):
    with serving(mosec, folder, "1GB", load_timeout=0.05) as (repository, gateway):
        client = Client(gateway)
        assert client.send("m00").status_code == 503 and "m01 is still loading after 0.05 s: send it again" in client.send("m01").text
        assert all(wait_until(lambda name=n: client.send(name).status_code == 200, 10) for n in ("m00", "m01")) and wait_until(lambda: is_idle(repository), 10)

def test_a_caller_that_has_gone_is_not_counted(mosec, folder):
    "gRPC cancels its request while the model loads"
    with serving(mosec, folder, "1GB") as (repository, gateway), grpcclient.InferenceServerClient(gateway.grpc_address) as client:
        assert client.is_server_live(headers=dict(gateway.headers))
        with pytest.raises(InferenceServerException, match="Deadline Exceeded"): client.get_model_metadata("m00", headers=dict(gateway.headers), client_timeout=0.1)
        assert wait_until(lambda: "m00" in on_server(repository), 20) and wait_until(lambda: is_idle(repository), 10)

def test_no_room_while_all_have_requests(mosec, folder, one):
    "A model that holds the only place keeps it; the other's requests say why they fail, and are served later"
    with serving(mosec, folder, int(1.5 * one), load_timeout=1) as (repository, gateway):
        with repository.use("m00"):
            r = Client(gateway).send("m01")
            assert r.status_code == 503 and ("there is no room for m01" in r.text or "still loading" in r.text)
            assert on_server(repository) == {"m00"}
        assert wait_until(lambda: Client(gateway).send("m01").status_code == 200, 20)

@pytest.mark.slow
def test_steady_requests_are_not_disturbed(mosec, folder, one):
    "Twenty models come and go beside one that is always in use"
    with serving(mosec, folder, int(2.5 * one)) as (repository, gateway), clients(gateway, "m00", "m00") as steady:
        client = Client(gateway)
        for name in NAMES[1:]: client.send(name)
        assert "m00" in on_server(repository) and not client.failed
        assert value(gateway, 'zz_model_load_seconds_count{model_name="m00"}') == 1
    assert sum(len(c.responses) for c in steady) > 200 and not [f for c in steady for f in c.failed]

def test_a_changed_archive_is_taken_once_it_is_idle(mosec, folder, scale):
    with serving(mosec, folder, "1GB", scaling=FAST) as (repository, gateway):
        client = Client(gateway)
        client.send("m00")
        copy(scale, folder, "m00", responseTimeout=30)
        (folder / "m01.mar").unlink()
        assert wait_until(lambda: "m00" not in on_server(repository), 10) and client.send("m00").status_code == 200
        assert client.send("m01").status_code == 404 and "m01" not in repository.models

# Protocols

@pytest.mark.slow
def test_every_protocol_loads(mosec, folder):
    "Metadata load a model, too; the index and readiness do not"
    with serving(mosec, folder, "1GB") as (repository, gateway):
        http, given = Client(gateway).http, {"headers": dict(gateway.headers)}
        assert http.get("/v2/health/ready").json() == {"ready": True} and http.get("/v2/models/m00/ready").json()["ready"]
        index = http.post("/v2/repository/index", json={}).json()
        assert {m["name"] for m in index if m["state"] == "READY"} == {*NAMES, "giant", "broken"} and not on_server(repository)
        assert http.post("/v2/models/m00/infer", json={"inputs": [{"name": "request", "datatype": "BYTES", "shape": [1], "data": ["1"]}]}).status_code == 200
        assert http.post("/v1/models/m01:predict", json={"instances": ["1"]}).json() == {"predictions": [{"model": "m01"}]}
        assert http.get("/v1/models/m02/metadata").status_code == 200
        rpc, web = grpcclient.InferenceServerClient(gateway.grpc_address), httpclient.InferenceServerClient(gateway.url.removeprefix("http://"))
        for client, name in ((rpc, "m03"), (web, "m04")):
            assert client.is_model_ready(name, **given) and name not in on_server(repository)
            assert client.get_model_metadata(name, **given) and name in on_server(repository)
            client.close()
        assert on_server(repository) == set(NAMES[:5])

def test_a_gateway_that_dies_holds_nothing(mosec, folder, one):
    "kill -9: what it had in flight is forgotten, and another gateway goes on"
    with serving(mosec, folder, int(1.5 * one)) as (repository, gateway):
        Client(gateway).send("m00")
        gateway.process.kill()
        assert wait_until(lambda: not repository.remote, 10)
        with Gateway(mosec, repository) as second: assert Client(second).send("m01").status_code == 200
        assert on_server(repository) == {"m01"}

def test_needs_an_archive_folder_and_a_running_server(mosec, folder):
    with pytest.raises(ToolkitError, match="no such folder"): ModelRepository(mosec, folder / "none", "1GB")
    with pytest.raises(ToolkitError, match="not a size of memory"): ModelRepository(mosec, folder, "much")
    with pytest.raises(ToolkitError, match="server does not run"): ModelRepository(make_server("mosec"), folder, "1GB").start()

# Workers

@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mosec", "torchserve"])
def test_workers_follow_the_load(request, kind, scale, tmp_path):
    "One client, four, one: workers 1 → 3 → 1, and no request fails"
    copy(scale, tmp_path, "slow", maxWorkers=3)
    server = request.getfixturevalue("mosec" if kind == "mosec" else "server")
    with serving(server, tmp_path, "4GB", scaling=FAST) as (repository, gateway), clients(gateway, "slow", pause=0.01) as [steady]:
        assert wait_until(lambda: len(steady.responses) > 20, 60) and repository.models["slow"].workers == 1
        with clients(gateway, *["slow"] * 3, pause=0.01) as more:
            assert wait_until(lambda: repository.models["slow"].workers == 3, 60)
            assert "3 (1–3)" in str(repository.status())
        assert wait_until(lambda: repository.models["slow"].workers == 1, 60)
        assert server.status("slow").workers == 1
    assert not steady.failed and not [f for c in more for f in c.failed]

@pytest.mark.slow
def test_another_worker_needs_memory_too(mosec, folder, one, scale):
    "It takes an idle model's place; without one to unload, the workers stay as they are"
    copy(scale, folder, "slow", maxWorkers=3)
    with serving(mosec, folder, int(2.5 * one), scaling=FAST) as (repository, gateway):
        Client(gateway).send("m00")
        with clients(gateway, *["slow"] * 4) as those:
            assert wait_until(lambda: repository.models["slow"].workers == 2, 20)
            time.sleep(1.5)
            assert repository.models["slow"].workers == 2 and on_server(repository) == {"slow"} and repository.claimed <= repository.budget
        assert not [f for c in those for f in c.failed]

# TorchServe

@pytest.mark.slow
def test_the_same_on_torchserve(server, folder):
    "Five models in memory for two"
    one = measure_second(server, folder, "m00", "m01")
    with serving(server, folder, int(2.5 * one)) as (repository, gateway):
        client = Client(gateway)
        for name in (*NAMES[:5], "m00"): client.send(name)
        assert not client.failed and value(gateway, "zz_model_unloads_total") >= 3
        loaded = {m.name for m in repository.loaded()}
        assert loaded <= on_server(repository) and len(loaded) <= 2
        assert client.send("broken").status_code == 503 and "ImportError: no module named nowhere" in client.send("broken").text
