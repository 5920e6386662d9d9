"Archives on NVIDIA Triton: what TorchServe says of a request, Triton says of it in the same bytes."
import json, os, signal, threading, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx, numpy as np, pandas as pd, psutil, pytest
from typer.testing import CliRunner

from conftest import ROOT
from zztoolkit.archive.mar import Mar
from zztoolkit.archive.packing import pack
from zztoolkit.benchmarks.triton_server import run_triton, why_no_triton
from zztoolkit.cli.main import app
from zztoolkit.errors import ToolkitError
from zztoolkit.features.features import Features
from zztoolkit.features.ops.encode import Categorify
from zztoolkit.features.ops.scale import Normalize
from zztoolkit.handler.wire import encode_request
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server
from zztoolkit.serving.torchserve.config import free_ports
from zztoolkit.serving.triton.repository import write_model
from zztoolkit.system import wait_until

pytestmark = pytest.mark.slow

on_triton = partial(pytest.mark.behaviour, server="triton")     # rows of the table of test_conformance.py

OCTETS, JSON = "application/octet-stream", "application/json"

PRICES = """
from zztoolkit import Handler
class Prices(Handler):
    def inference(self, x): return x["continuous"].sum(1) + 10 * x["categorical"].sum(1)
    def postprocess(self, y): return [{"worth": round(float(v), 4)} for v in y]
"""

# A handler that knows nothing of us, with a module that has the name of Triton's, and a file that is not ASCII
FOREIGN = """
import model
class Foreign:
    def initialize(self, context): self.unit = open("unit.txt").read()
    def handle(self, rows, context): return [{"twice": model.twice(row["body"]["x"]), "unit": self.unit} for row in rows]
"""


def pack_prices(folder: Path) -> Mar:
    table = pd.DataFrame({"price": [10.0, 20.0, 40.0], "brand": ["acer", "dell", "acer"]})
    features = Features([Normalize(["price"]), Categorify(["brand"])], outputs=["price", "brand"]).fit(table)
    (folder / "prices.py").write_text(PRICES)
    return pack("prices", folder / "prices.py", version="7", store=folder, features=features, workers=1, batch_size=4, max_batch_delay=50)

ECHO = """
from zztoolkit import Handler
import os
class Echo(Handler):
    def preprocess(self, requests): return list(requests)
    def inference(self, xs):
        if "die" in [str(x) for x in xs]: os._exit(3)
        return xs
    def postprocess(self, xs): return [{"type": type(x).__name__, "shape": list(getattr(x, "shape", [])), "value": str(x)[:200]} for x in xs]
"""

def pack_echo(folder: Path, name: str = "echo") -> Mar:
    (folder / "echo.py").write_text(ECHO)
    return pack(name, folder / "echo.py", store=folder, workers=1, batch_size=4)

def pack_foreign(folder: Path) -> Mar:
    (folder / "model.py").write_text("def twice(x): return 2 * x\n")
    (folder / "unit.txt").write_text("€", encoding="utf-8")
    (folder / "foreign.py").write_text(FOREIGN)
    return pack("foreign", folder / "foreign.py", store=folder, extra_files=[folder / "model.py", folder / "unit.txt"], example={"x": 1})

@pytest.fixture(scope="module")
def endpoints(server, classifier, tmp_path_factory) -> dict:
    "The archives on TorchServe, by name"
    folder = tmp_path_factory.mktemp("archives")
    mars = pack_prices(folder), pack_foreign(folder), pack_echo(folder), pack_echo(folder, "mortal")
    own = {m.name: deploy(server, m) for m in mars}
    yield own | {"classifier": classifier}
    for endpoint in own.values(): endpoint.remove()

@pytest.fixture(scope="module")
def repository(endpoints, tmp_path_factory) -> Path:
    "The archives as the model repository that the command writes"
    folder = tmp_path_factory.mktemp("triton")
    for endpoint in endpoints.values():
        mar = endpoint.archive(folder / "store")
        done = CliRunner().invoke(app, ["archive", str(mar.path), "--for", "triton", "--to", str(folder / "models")])
        assert done.exit_code == 0 and done.output.split() == [str(folder / "models" / mar.name)], done.output
    return folder / "models"

@pytest.fixture(scope="module")
def triton(repository, tmp_path_factory):
    if reason := why_no_triton(): pytest.skip(reason)
    import tritonclient.http
    with run_triton(repository, tmp_path_factory.mktemp("server")) as url, tritonclient.http.InferenceServerClient(url, concurrency=8) as client: yield client


def how_to() -> dict:
    "Return the names in the client of the how-to page, as a reader would copy it"
    cells = json.loads((ROOT / "nbs" / "howto" / "triton.ipynb").read_text())["cells"]
    source, = ("".join(c["source"]) for c in cells if c["id"] == "client")
    names: dict = {}
    exec(source.partition("\n")[2], names)      # its first line is %%writefile
    return names

def same(endpoint, client, body: bytes, kind: str) -> httpx.Response:
    "Send a request to both servers under one id, compare status, content type and every byte; return TorchServe's response"
    expected = endpoint.post(body, kind)
    request_id = expected.headers["x-request-id"]
    column = how_to()["column"]
    result = client.infer(endpoint.name, [column("request", [body]), column("content_type", [kind.encode()])], request_id=request_id)
    status, response, content_type = (result.as_numpy(n).item() for n in ("status", "response", "content_type"))
    assert (status, response) == (expected.status_code, expected.content)
    assert content_type.decode() == expected.headers.get("content-type", "")
    return expected


def test_configuration(repository, endpoints):
    "config.pbtxt is what tritonclient's own protobuf reads, and has the archive's values"
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup
    def read(name): return text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())
    prices, foreign = read("prices"), read("foreign")
    assert (prices.name, prices.backend, prices.max_batch_size) == ("prices", "python", 4)
    assert prices.dynamic_batching.max_queue_delay_microseconds == 50_000
    group, = prices.instance_group
    assert (group.count, group.kind) == (1, ModelInstanceGroup.KIND_CPU)
    assert (foreign.max_batch_size, foreign.HasField("dynamic_batching")) == (1, False)
    assert foreign.parameters["archive_version"].string_value == "1.0" and (repository / "foreign" / "1" / "model.py").is_file()
    assert sorted(p.name for p in (repository / "prices").iterdir()) == ["7", "config.pbtxt"]

@on_triton("images")
def test_twelve_photographs(triton, endpoints, photos, record_property):
    "With real weights, over the client's own HTTP"
    record_property("version", triton.get_server_metadata()["version"])
    answers = [same(endpoints["classifier"], triton, p.read_bytes(), OCTETS).json() for p in photos[:12]]
    assert len(answers) == 12 and all(0 < a[0]["probability"] <= 1 for a in answers)

@on_triton("fails alone", "errors")
def test_a_broken_image_fails_alone(triton, endpoints, photo):
    "Three rows of one request, which are one batch: the good ones are served, the error is TorchServe's"
    good, broken = photo.read_bytes(), photo.read_bytes()[:20_000]
    expected = [endpoints["classifier"].post(body, OCTETS) for body in (good, broken, good)]
    answers = how_to()["predict"](triton, "classifier", [good, broken, good], OCTETS, request_id="three")
    ids = expected[1].headers["x-request-id"].encode(), b"three-1"
    assert answers == [(r.status_code, r.content.replace(*ids)) for r in expected]
    assert [status for status, _ in answers] == [200, 400, 200] and b"DecodeError" in answers[1][1]
    same(endpoints["classifier"], triton, broken, OCTETS)

RECORDS = [({"price": 12.5, "brand": "dell"}, 200), ({"price": 12.5, "brand": "unknown"}, 200), ({"price": "much", "brand": "dell"}, 422), ({}, 422), ("no record", 422)]

@on_triton("records", "errors")
@pytest.mark.parametrize("record, status", RECORDS)
def test_records(triton, endpoints, record, status):
    assert same(endpoints["prices"], triton, json.dumps(record).encode(), JSON).status_code == status

def test_requests_make_batches(triton, endpoints):
    "Requests that come together are one batch, and each has its own response"
    column = how_to()["column"]
    def ask(price): return triton.async_infer("prices", [column("request", [json.dumps({"price": price, "brand": "acer"}).encode()]), column("content_type", [JSON.encode()])])
    waiting = [ask(price) for price in range(16)]
    worths = [json.loads(w.get_result().as_numpy("response").item())["worth"] for w in waiting]
    assert worths == sorted(worths) and len(set(worths)) == 16
    stats, = triton.get_inference_statistics("prices")["model_stats"]
    assert max(b["batch_size"] for b in stats["batch_stats"]) > 1

@on_triton("texts")
@pytest.mark.parametrize("body, kind", [("Größe €".encode(), "text/plain"), (b"\xff\xfe", "text/plain"), (b"\x00\x01", OCTETS), (b"", OCTETS)])
def test_texts_and_bytes(triton, endpoints, body, kind): same(endpoints["echo"], triton, body, kind)

@on_triton("arrays")
def test_arrays(triton, endpoints):
    "As `Endpoint.predict` sends them"
    for array in (np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((1, 0)), np.array(["ä", "b"])):
        same(endpoints["echo"], triton, *encode_request(array, False))

@on_triton("dies")
def test_a_handler_that_ends_its_process(triton, endpoints, record_property):
    "Triton responds with an error of its own, and does not start the process again; other models serve on"
    from tritonclient.utils import InferenceServerException
    record_property("no", "the request fails, and so do all after it, until the model is loaded again")
    for text in (b"die", b"live"):
        with pytest.raises(InferenceServerException, match="is not healthy"): how_to()["predict"](triton, "mortal", [text], "text/plain")
    same(endpoints["echo"], triton, b"live", "text/plain")

@on_triton("unknown model")
def test_an_unknown_model(triton, record_property):
    record_property("no", "Triton's own error, with its own status")
    url = f"http://{triton._parsed_url.host}:{triton._parsed_url.port}/v2/models/nothing/infer"
    r = httpx.post(url, json={"inputs": []}, trust_env=False)
    assert r.status_code in (400, 404) and "nothing" in r.json()["error"]

@on_triton("token")
def test_no_token_is_asked_for(triton, record_property):
    record_property("no", "it has none: a proxy in front checks them")
    assert how_to()["predict"](triton, "echo", [b"anybody"], "text/plain")[0][0] == 200

@on_triton("torchserve handler")
def test_a_handler_of_torchserve(triton, endpoints):
    "Its JSON, its 503 for whatever it raises"
    assert same(endpoints["foreign"], triton, b'{"x": 21}', JSON).json() == {"twice": 42, "unit": "€"}
    assert same(endpoints["foreign"], triton, b'{"y": 21}', JSON).json()["message"] == "Prediction failed"

@on_triton("forms")
def test_forms_are_rejected(triton, record_property):
    record_property("no", "a form is rejected with 415: send the bytes of one file, or JSON")
    (status, body), = how_to()["predict"](triton, "prices", [b"--x"], "multipart/form-data; boundary=x")
    assert status == 415 and b"forms are not read here" in body

def test_too_many_rows_are_tritons_own_error(triton, photo):
    from tritonclient.utils import InferenceServerException
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4"): how_to()["predict"](triton, "prices", [b"{}"] * 5, JSON)


def pack_version(folder: Path, version: str) -> Mar:
    "An archive that responds with its version"
    (folder / "versions.py").write_text(f"""
from zztoolkit import Handler
class Versions(Handler):
    def preprocess(self, xs): return list(xs)
    def inference(self, xs): return [{version!r}] * len(xs)
""")
    return pack("versions", folder / "versions.py", version=version, store=folder, example=1)

@on_triton("swap")
def test_versions_change_under_load(tmp_path):
    "A Triton that polls its repository takes up what is written over a model, the same folder or another, without a failed request"
    if reason := why_no_triton(): pytest.skip(reason)
    import tritonclient.http
    write_model(pack_version(tmp_path, "1.0"), tmp_path / "models")
    responses, stop = [], threading.Event()

    def ask(url: str):
        with tritonclient.http.InferenceServerClient(url) as client:
            while not stop.is_set():
                try: responses.append(how_to()["predict"](client, "versions", [b"1"], JSON)[0])
                except Exception as e: responses.append(e)
                time.sleep(0.01)

    with run_triton(tmp_path / "models", tmp_path / "server", "--model-control-mode=poll", "--repository-poll-secs=1") as url:
        asking = threading.Thread(target=ask, args=[url])
        asking.start()
        try:
            for version in ("1.1", "2"):
                time.sleep(5)       # Triton 2.51 hangs for good if files that it is loading are replaced: it may load them twice
                write_model(pack_version(tmp_path, version), tmp_path / "models")
                assert wait_until(lambda: responses[-1] == (200, version.encode()), 90), responses[-1]
        finally:
            stop.set()
            asking.join()
    assert set(responses) == {(200, v.encode()) for v in ("1.0", "1.1", "2")}


# What the other servers' `Server` does, Triton does in its own way, or not at all

ODD = """
from ts.handler_utils.utils import send_intermediate_predict_response
from zztoolkit import Handler
import os, time
from pathlib import Path
class Odd(Handler):
    def initialize(self, context):
        super().initialize(context)
        if Path(FOLDER, "broken").exists(): raise RuntimeError("it does not load")
        self.context = context
    def preprocess(self, requests): return list(requests)
    def inference(self, xs): return [self.do(x) for x in xs]
    def do(self, x):
        if x == "print": print("printed by a handler")
        if x == "raise": raise RuntimeError("of a handler")
        if x == "parts": send_intermediate_predict_response(["a part"], self.context.request_ids, "", 200, self.context)
        time.sleep(float(x[5:] or 0) if x.startswith("sleep") else 0)
        return {"pid": os.getpid(), "size": len(x), "version": VERSION}
"""

def write_odd(folder: Path, version: str = "1.0"):
    (folder / "odd.py").write_text(ODD.replace("FOLDER", repr(str(folder))).replace("VERSION", repr(version)))
    mar = pack("odd", folder / "odd.py", version=version, store=folder, example="hi", workers=1, batch_size=1, responseTimeout=1)
    if version == "broken": (folder / "broken").touch()
    write_model(mar, folder / "models")

@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    "A Triton of its own with one model, its gRPC and its metrics open: where they are, and its log"
    if reason := why_no_triton(): pytest.skip(reason)
    folder, (grpc, metrics) = tmp_path_factory.mktemp("odd"), free_ports(2)
    write_odd(folder)
    options = ["--allow-grpc=true", f"--grpc-port={grpc}", "--grpc-address=127.0.0.1", "--allow-metrics=true", f"--metrics-port={metrics}", "--metrics-address=127.0.0.1"]
    with run_triton(folder / "models", folder / "server", *options) as url:
        yield SimpleNamespace(url=url, log=folder / "server/log", grpc=grpc, metrics=metrics)

def ask(url: str, text: str) -> tuple[int, dict]:
    "Return status and response; a client works in one thread only"
    import tritonclient.http
    with tritonclient.http.InferenceServerClient(url) as client:
        status, body = how_to()["predict"](client, "odd", [text.encode()], "text/plain")[0]
    return status, json.loads(body)

@on_triton("large body")
def test_no_body_is_too_large(odd, record_property):
    record_property("no", "bodies of any size are taken: a proxy in front limits them")
    status, response = ask(odd.url, "x" * 20_000_000)
    assert (status, response["size"]) == (200, 20_000_000)

@on_triton("hangs")
def test_a_slow_handler_is_waited_for(odd, record_property):
    record_property("no", "the response timeout is not kept: Triton waits for a handler as long as it takes")
    assert ask(odd.url, "sleep3")[0] == 200

@on_triton("queue full")
def test_a_queue_without_end(odd, record_property):
    record_property("no", "the queue has no end, unless config.pbtxt gets a queue policy by hand")
    with ThreadPoolExecutor(12) as pool: answers = list(pool.map(lambda _: ask(odd.url, "sleep0.1")[0], range(120)))
    assert answers == [200] * 120

@on_triton("logs")
def test_the_log(odd):
    assert ask(odd.url, "print")[0] == 200 and ask(odd.url, "raise")[0] == 500
    assert wait_until(lambda: "printed by a handler" in odd.log.read_text(), 10)
    assert "RuntimeError: of a handler" in odd.log.read_text() and "Traceback" in odd.log.read_text()

@on_triton("metrics")
def test_metrics_are_tritons(odd, record_property):
    record_property("no", "Triton's own: requests, batches and latency, not the time of each stage, nor a handler's own metrics")
    text = httpx.get(f"http://127.0.0.1:{odd.metrics}/metrics", trust_env=False).text
    for name in ("nv_inference_request_success", "nv_inference_exec_count", "nv_inference_request_duration_us"): assert f'{name}{{model="odd"' in text
    assert "zz_" not in text

@on_triton("grpc")
def test_grpc_is_tritons(odd, record_property):
    record_property("no", "it speaks its own gRPC, the Open Inference Protocol's")
    import grpc, tritonclient.grpc
    from zztoolkit.serving.torchserve.grpc import encode_grpc_request, GRPC_METHOD
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{odd.grpc}") as client: assert client.is_model_ready("odd")
    with grpc.insecure_channel(f"127.0.0.1:{odd.grpc}") as channel, pytest.raises(grpc.RpcError) as e:
        channel.unary_unary(GRPC_METHOD)(encode_grpc_request("odd", b"hi"), timeout=30)
    assert e.value.code() is grpc.StatusCode.UNIMPLEMENTED

@on_triton("overlap")
def test_batches_take_turns(odd, record_property):
    record_property("no", "an instance takes its next batch when it has answered the last one")
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool: assert [a[0] for a in pool.map(lambda _: ask(odd.url, "sleep1"), range(2))] == [200, 200]
    assert time.monotonic() - started > 2

@on_triton("streaming")
def test_parts_are_an_error(odd, record_property):
    record_property("no", "a handler that sends its response in parts gets an error")
    assert ask(odd.url, "parts")[0] == 500 and ask(odd.url, "hi")[0] == 200

@on_triton("killed")
def test_a_killed_process_stays_away(odd, record_property):
    "The last of this server: its process is gone"
    from tritonclient.utils import InferenceServerException
    record_property("no", "its requests fail, and so do all after them, until the model is loaded again")
    pid = ask(odd.url, "hi")[1]["pid"]
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    for text in ("sleep2", "hi"):
        with pytest.raises(InferenceServerException, match="is not healthy"): ask(odd.url, text)

@on_triton("owner killed", "scale", "reload", "panel", "found")
def test_triton_is_not_started_here(record_property):
    record_property("no", "zztoolkit writes Triton's repository, and does not start Triton")
    with pytest.raises(ToolkitError, match="triton"): make_server("triton")

@on_triton("drain")
def test_sigterm(tmp_path):
    "The request in flight gets its response, later ones are turned away, and nothing is left"
    if reason := why_no_triton(): pytest.skip(reason)
    from geventhttpclient.response import HTTPConnectionClosed
    from tritonclient.utils import InferenceServerException
    write_odd(tmp_path)
    with run_triton(tmp_path / "models", tmp_path / "server") as url, ThreadPoolExecutor(1) as pool:
        triton, = (p for p in psutil.Process().children() if p.name() == "tritonserver" and f"--model-repository={tmp_path / 'models'}" in p.cmdline())
        family = [triton, *triton.children(recursive=True)]
        waiting = pool.submit(ask, url, "sleep2")
        time.sleep(0.7)
        triton.terminate()
        time.sleep(0.3)
        with pytest.raises((InferenceServerException, HTTPConnectionClosed, OSError)): ask(url, "hi")
        assert waiting.result()[0] == 200
        assert not psutil.wait_procs(family, 10)[1]

@on_triton("broken version")
def test_a_version_that_does_not_load(tmp_path):
    "A Triton that polls says so in its log, and serves the one before"
    if reason := why_no_triton(): pytest.skip(reason)
    write_odd(tmp_path)
    with run_triton(tmp_path / "models", tmp_path / "server", "--model-control-mode=poll", "--repository-poll-secs=1") as url:
        assert ask(url, "hi")[1]["version"] == "1.0"
        time.sleep(5)       # see test_versions_change_under_load
        write_odd(tmp_path, "broken")
        assert wait_until(lambda: "it does not load" in (tmp_path / "server/log").read_text(), 60)
        time.sleep(2)
        assert ask(url, "hi")[1]["version"] == "1.0"
