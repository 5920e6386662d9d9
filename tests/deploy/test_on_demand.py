"A pod with more archives than memory: each is loaded when a request asks for it."
from __future__ import annotations

import random, re, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx, numpy as np, pytest, tritonclient.grpc as grpcclient, tritonclient.http as httpclient

from conftest import missing
from support.pods import Pod, wait_until
from support.scale import copy, SCALE
from zztoolkit.archive.mar import open_mar
from zztoolkit.archive.packing import pack
from zztoolkit.archive.signing import new_key, sign
from zztoolkit.deploy.pod_config import PodConfig
from zztoolkit.deploy.values import check_sizes
from zztoolkit.errors import ToolkitError
from zztoolkit.gateway import ModelRepository
from zztoolkit.gateway.repository.archives import VerifiedArchives
from zztoolkit.serving.server import make_server

TOKEN = "the-token-of-the-shop"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
NAMES = [f"m{i}" for i in range(8)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    "Eight signed archives of 40 MB, and what breaks; the key lies above"
    if not Path("/usr/sbin/haproxy").exists(): missing("no haproxy: apt install haproxy")
    home = tmp_path_factory.mktemp("on_demand")
    (home / "scale.py").write_text(SCALE)
    scale = pack("scale", home / "scale.py", store=home, example="1").path
    key = new_key(home / "release")[0]
    (home / "store").mkdir()
    for name in (*NAMES, "broken"):
        copy(scale, home / "store", name)
        sign(home / "store" / f"{name}.mar", key)
    return home / "store"

def start(store: Path, folder: Path, *args) -> Pod:
    "A pod with memory for three or four of the models"
    folder.mkdir(exist_ok=True)
    (folder / "tokens").write_text(TOKEN)
    given = "--server", "mosec", "--memory", "150MB", "--keys", store.parent / "release.pub"
    return Pod(folder / "log", store, *given, "--tokens", folder / "tokens", "--endpoint-wait", "1", *args)

@pytest.fixture(scope="module")
def pod(store, tmp_path_factory):
    with start(store, tmp_path_factory.mktemp("pod")) as pod: yield pod.wait_ready()

def ask(pod: Pod, name: str, token: str = TOKEN) -> httpx.Response:
    known = {"Authorization": f"Bearer {token}"} if token else {}
    return pod.http.post(pod.url(0, f"/predictions/{name}"), content=b"1", headers={"Content-Type": "text/plain"} | known)

def count(pod: Pod, metric: str, port: int = 3) -> float:
    "Return the sum of a metric over the models"
    found = re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", pod.get("/metrics", port).text, re.M)
    return sum(map(float, found))


def test_nothing_is_loaded_before_a_request(pod):
    "The pod is ready all the same; who has no token loads nothing either"
    assert pod.ready and pod.workers() == [] and pod.get("/livez").status_code == 200
    assert count(pod, "zz_ready", 4) == 1 and count(pod, "zz_ready_workers", 4) == 0
    assert pod.http.get(pod.url(0, "/v2/health/ready"), headers=BEARER).status_code == 200
    assert [ask(pod, "m0", token).status_code for token in ("", "another-token-of-the-shop")] == [401] * 2
    assert ask(pod, "absent").status_code == 404 and pod.workers() == []
    assert count(pod, "zz_model_info", 4) == len(NAMES) + 1

def test_all_models_respond_in_memory_for_some(pod):
    "In random order, by four clients; the pod is ready meanwhile"
    def run(seed: int) -> list[tuple[int, dict]]:
        order = random.Random(seed).sample(NAMES, len(NAMES))
        return [(r.status_code, r.json(), name) for name in order for r in [ask(pod, name)]]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(run, seed) for seed in range(4)]
        while not all(r.done() for r in runs):
            assert pod.ready
            time.sleep(0.2)
    responses = [x for r in runs for x in r.result()]
    assert [x for x in responses if x[:2] != (200, {"model": x[2]})] == []
    assert count(pod, "zz_model_unloads_total") > 0 and 0 < count(pod, "zz_ready_workers", 4) <= 4
    wait_until(lambda: count(pod, "zz_model_memory_bytes") <= count(pod, "zz_memory_budget_bytes"))
    unpacked = [*pod.tmp.glob("zztoolkit-*/zztoolkit-*/tmp/models/*")]
    assert 0 < len(unpacked) <= 4 and "ended: exit code" not in pod.said()      # those of unloaded models are gone
    served = re.findall(r'zz_request_seconds_count{model_name="(m\d)"}', pod.get("/metrics").text)
    assert sorted(served) == NAMES

def test_a_model_that_does_not_load_fails_alone(pod):
    "Its request says why, and so does the pod's log, once"
    r = ask(pod, "broken")
    assert r.status_code == 503 and "no module named nowhere" in r.text
    assert ask(pod, "broken").status_code == 503 and ask(pod, "m1").status_code == 200
    assert 'zz_model_load_failures_total{model_name="broken"} 1.0' in pod.get("/metrics", 3).text     # of an alert
    wait_until(lambda: "broken does not load" in pod.said())
    time.sleep(1)
    assert pod.said().count("broken does not load") == 1 and pod.ready

@pytest.mark.slow
def test_standard_clients_load_models(pod):
    "tritonclient, over HTTP and over gRPC"
    client = httpclient.InferenceServerClient(f"{pod.host}:{pod.ports[0]}", network_timeout=60)
    for name in NAMES[:4]: ask(pod, name)       # the others are on disk then
    assert client.is_model_ready("m6", headers=dict(BEARER))
    loads = count(pod, "zz_model_load_seconds_count")
    body = httpclient.InferInput("request", [1], "BYTES")
    body.set_data_from_numpy(np.array([b"1"], object))
    assert b"m6" in client.infer("m6", [body], headers=dict(BEARER)).as_numpy("response")[0]
    with grpcclient.InferenceServerClient(f"{pod.host}:{pod.ports[0]}") as rpc:
        body = grpcclient.InferInput("request", [1], "BYTES")
        body.set_data_from_numpy(np.array([b"1"], object))
        headers = {k.lower(): v for k, v in BEARER.items()}
        assert b"m7" in rpc.infer("m7", [body], headers=headers).as_numpy("response")[0]
    assert count(pod, "zz_model_load_seconds_count") == loads + 2


def test_nothing_else_is_loaded(store, pod):
    "Neither an archive that comes into the pod's own store, nor other bytes under a verified one's name"
    [own] = pod.tmp.glob("zztoolkit-*/store")
    assert ask(pod, "m2").status_code == 200
    (own / "other.mar").write_bytes((store / "m0.mar").read_bytes())
    assert ask(pod, "other").status_code == 404
    for name in NAMES[3:]: ask(pod, name)       # m2 is unloaded for them
    given = (own / "m2.mar").read_bytes()
    for file, bytes_ in (("m2.mar", (store / "broken.mar").read_bytes()), ("m2.mar.sha256", (store / "broken.mar.sha256").read_bytes())):
        (own / file).write_bytes(bytes_)
    r = ask(pod, "m2")
    (own / "m2.mar").write_bytes(given)
    assert r.status_code == 503 and "m2.mar" in r.text, r.text
    assert ask(pod, "m3").status_code == 200

@pytest.mark.slow
def test_a_pod_drains_while_models_are_loaded(store, tmp_path):
    "SIGTERM while clients ask for more models than fit: nothing is lost, exit 0, no process is left"
    with start(store, tmp_path) as pod:
        pod.wait_ready()
        statuses, over = [], threading.Event()
        def press(seed: int):
            order = random.Random(seed)
            while not over.is_set(): statuses.append(ask(pod, order.choice(NAMES)).status_code)
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(press, seed) for seed in range(4)]
            wait_until(lambda: len(statuses) > 20, 60)
            family = pod.family()
            pod.process.terminate()
            wait_until(lambda: pod.get("/readyz").status_code == 503, 2)
            standard = [pod.http.get(pod.url(0, path), headers=BEARER).status_code for path in ("/v2/models/m0/ready", "/v2/health/ready")]
            time.sleep(0.5)     # the endpoints look away
            over.set()
            for r in runs: r.result()
        assert {*statuses} == {200} and pod.process.wait(40) == 0
        assert standard == [503, 503] and "every request was answered" in pod.said()
        assert [p for p in family if p.is_running()] == [] and not [*pod.tmp.glob("zztoolkit-*")]

@pytest.mark.slow
def test_a_pod_without_requests_drains(store, tmp_path):
    "Nothing is loaded, and it is not ready all the same"
    with start(store, tmp_path, "--endpoint-wait", "3") as pod:
        pod.wait_ready().process.terminate()
        wait_until(lambda: pod.get("/readyz").status_code == 503, 2)
        assert pod.http.get(pod.url(0, "/v2/health/ready"), headers=BEARER).status_code == 503
        assert pod.process.wait(30) == 0

@pytest.mark.slow
def test_a_model_that_did_not_load_is_tried_again(tmp_path_factory):
    "After a while, since the file of a pod's archive never changes; meanwhile its requests fail at once"
    folder = tmp_path_factory.mktemp("again")
    (folder / "again.py").write_text(SCALE.replace('if self.name == "broken"', f'from pathlib import Path; gone = Path({str(folder)!r}, "gone")\n        if gone.exists()'))
    mar = pack("again", folder / "again.py", store=folder, example="1")
    with make_server("mosec") as server, ModelRepository(server, VerifiedArchives([mar]), "1GB", retry=2) as repository:
        (folder / "gone").touch()
        with pytest.raises(ToolkitError, match="again"): repository.predict("again", "1")
        (folder / "gone").unlink()
        with pytest.raises(ToolkitError): repository.predict("again", "1")
        time.sleep(2)
        assert repository.predict("again", "1") == {"model": "again"}

def test_an_archive_that_is_too_large(store):
    "By its files alone, so that it can be told before anything is loaded"
    mars = [open_mar(store / f"{name}.mar") for name in NAMES[:2]]
    check_sizes(mars, "1MB")
    with pytest.raises(ToolkitError, match="a model is larger than the memory for all models\\nm0, 3000 MB; 2GB for all"):
        check_sizes([SimpleNamespace(name="m0", unpacked_size=3e9), *mars], "2GB")

def test_an_archive_that_nobody_signed_is_rejected(store, tmp_path):
    "At the start, whether or not a request would ever ask for it"
    copies = tmp_path / "store"
    copies.mkdir()
    for name in ("m0.mar", "m0.mar.sha256"): (copies / name).write_bytes((store / name).read_bytes())
    (copies.parent / "release.pub").write_bytes((store.parent / "release.pub").read_bytes())
    with start(copies, tmp_path) as pod:
        assert pod.process.wait(30) == 1 and "m0.mar is not signed" in pod.said()

@pytest.mark.parametrize("given, problem", [
    ({}, "torchserve loads all models of a pod at its start"),
    ({"server": "mosec", "memory": "much"}, "not a size of memory"),
    ({"server": "mosec", "token_auth": True}, "models that are loaded on demand have no tokens of their own"),
    ({"server": "mosec", "front": False}, "the gateway needs the proxy\n--memory with --no-front")])
def test_options_that_contradict_it(tmp_path, given, problem):
    with pytest.raises(ToolkitError, match=re.escape(problem)):
        PodConfig(tmp_path, **{"memory": "2GB", "token_auth": False} | given)
