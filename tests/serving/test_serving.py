"TorchServe's life: batches, deaths, drains and what is left behind."
import inspect, json, os, signal, textwrap, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx, numpy as np, pandas as pd, PIL.Image, psutil, pytest, torch

from support.owner import killed_supervisor
from zztoolkit import samples
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.handler.handler import Handler
from zztoolkit.serving.failures import PredictionError
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.torchserve.config import Settings
from zztoolkit.serving.torchserve.server import LocalServer

SLEEPY = """
import os, time
from zztoolkit import Handler

class Sleepy(Handler):
    def preprocess(self, requests): return list(requests)
    def inference(self, xs):
        while xs[0].get("hang"): pass
        time.sleep(max(x["sleep"] for x in xs))
        return xs
    def postprocess(self, xs): return [{"pid": os.getpid(), "batch": len(xs), "names": sorted(os.environ)} for x in xs]
"""

@pytest.fixture(scope="module")
def sleepy(tmp_path_factory):
    "An archive that may be served anywhere: a request says how long its handler sleeps, or that it never returns"
    folder = tmp_path_factory.mktemp("sleepy")
    (folder / "sleepy.py").write_text(SLEEPY)
    return pack("sleepy", folder / "sleepy.py", store=folder, example={"sleep": 0}, responseTimeout=2)

@pytest.fixture(scope="module")
def strict(sleepy):
    """A server of narrow limits, started where secrets and a proxy are in the environment.

    One request may wait, a response may take two seconds, and a key ends in a minute.
    """
    server = LocalServer(Settings(job_queue_size=1, token_minutes=1, response_timeout=2))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MY_API_KEY", "hush")
        environment.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        endpoint = deploy(server.start(), sleepy)
        assert endpoint.predict({"sleep": 0})["batch"] == 1      # not by the proxy
    yield endpoint
    server.stop()

def wait_until(condition, timeout: float = 15):
    end = time.monotonic() + timeout
    while not condition() and time.monotonic() < end: time.sleep(0.05)
    assert condition()


def test_one_corrupt_photo_in_a_batch_of_eight(serve_source, tiny, photo):
    "Eight strangers in one batch: one 400 that says why, seven answers"
    source = """
    from zztoolkit import Handler, vision as V
    class Counting(Handler):
        chain = V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())
        def postprocess(self, outputs): return [{"live": len(outputs), "class": int(y.argmax())} for y in outputs]
    """
    endpoint = serve_source("counting", textwrap.dedent(source), tiny, batchSize=8, maxBatchDelay=1500)
    good, corrupt = photo.read_bytes(), photo.read_bytes()[:20_000]
    answers = endpoint.predict([good] * 4 + [corrupt] + [good] * 3, return_exceptions=True)
    bad = answers.pop(4)
    assert isinstance(bad, PredictionError) and (bad.status, bad.kind) == (400, "DecodeError") and "truncated" in bad.message
    assert [a["live"] for a in answers] == [7] * 7      # they were one batch, and seven of it lived

@pytest.mark.slow
def test_raising_batch_is_split(serve_source):
    "A postprocess that raises for its whole batch: only the culprit gets a 500, with the handler's traceback for its engineer"
    source = SLEEPY.replace('return [{"pid"', 'return [1 / min(x["n"] for x in xs) and {"pid"')
    endpoint = serve_source("splitting", source, example={"sleep": 0, "n": 1}, batchSize=8, maxBatchDelay=1500)
    answers = endpoint.predict([{"sleep": 0, "n": n} for n in (1, 2, 3, 0, 5, 6, 7, 8)], return_exceptions=True)
    bad = answers.pop(3)
    assert (bad.status, bad.kind) == (500, "InternalError") and "division" not in bad.message
    assert "ZeroDivisionError" in bad.found and "in postprocess" in bad.found and "/ts/" not in bad.found
    assert all(a["batch"] >= 1 for a in answers)

def test_stage_timings_are_metrics(classifier, photo):
    classifier.predict(photo)
    text = classifier.server.metrics()
    for stage in ("read", "decode", "preprocess", "inference", "postprocess", "encode"):
        assert f'zz_stage_seconds_count{{model_name="classifier",stage="{stage}"' in text

def test_twenty_labelled_photographs(classifier, labelled):
    "The whole path is right: resize, crop, normalise, engine and labels. EfficientNet-Lite0's own top-1 is 75 %"
    names = json.loads(samples.imagenet_labels().read_text())
    answers = classifier.predict([p for p, _ in labelled])
    right = sum(a[0]["label"] == names[str(c)] for a, (_, c) in zip(answers, labelled))
    assert right >= 17, right

@pytest.mark.slow
def test_base_handler_of_torchserve(serve_source, tmp_path):
    "A plain TorchServe handler is archived and served too"
    class Doubler(torch.nn.Module):
        def forward(self, x): return x * 2
    torch.jit.script(Doubler()).save(str(tmp_path / "doubler.pt"))
    endpoint = serve_source("doubler", textwrap.dedent("""
        import torch
        from ts.torch_handler.base_handler import BaseHandler
        class DoublerHandler(BaseHandler):
            def preprocess(self, data): return torch.tensor([float(row["body"]["x"]) for row in data])
            def postprocess(self, outputs): return outputs.tolist()
        """), tmp_path / "doubler.pt", example={"x": 1})
    assert endpoint.predict({"x": 21}) == 42

@pytest.mark.slow
def test_worker_that_dies_at_load_shows_its_traceback(serve_source, server):
    source = SLEEPY + "    def initialize(self, context):\n        if '/models/' in os.getcwd(): raise KeyError('labels')\n        super().initialize(context)\n"
    with pytest.raises(ToolkitError) as e: serve_source("dying", source, example={"sleep": 0})
    assert "KeyError: 'labels'" in e.value.found and "in initialize" in e.value.found and "/ts/" not in e.value.found
    assert "dying" not in server.management.models()

@pytest.mark.slow
def test_worker_that_is_killed_at_load_says_out_of_memory(serve_source, server):
    source = SLEEPY + "    def initialize(self, context):\n        if '/models/' in os.getcwd(): os.kill(os.getpid(), 9)\n        super().initialize(context)\n"
    with pytest.raises(ToolkitError, match="exit code 137, killed: out of memory"): serve_source("killed", source, example={"sleep": 0})
    assert "killed" not in server.management.models()

@pytest.mark.slow
def test_kill_of_a_worker(serve_source):
    "kill -9 in the middle of a batch: every request of it is answered, none is lost silently, and the worker comes back"
    endpoint = serve_source("mortal", SLEEPY, example={"sleep": 0}, batchSize=4, maxBatchDelay=500)
    pid = endpoint.predict({"sleep": 0})["pid"]
    def ask(_):
        try: return endpoint.predict({"sleep": 2.5})
        except ToolkitError as e: return e
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, i) for i in range(4)]
        time.sleep(1)
        os.kill(pid, signal.SIGKILL)
        answers = [a.result(timeout=60) for a in asked]
    assert all(isinstance(a, PredictionError) and a.status in (413, 500, 503, 507) for a in answers), answers
    assert "worker died" in answers[0].found and "exit code 137, killed: out of memory?" in answers[0].found
    endpoint.wait_ready()
    wait_until(lambda: endpoint.predict({"sleep": 0})["pid"] != pid, 30)

def test_full_queue_is_explained(strict):
    answers = strict.predict([{"sleep": 1}] * 6, return_exceptions=True)
    refused = [a for a in answers if isinstance(a, PredictionError)]
    assert refused and len(refused) < 6
    assert {a.status for a in refused} == {503} and "queue is full: job_queue_size is 1" in refused[0].found

def test_tokens_are_renewed(strict):
    "Keys that end in a minute are renewed at the next use; a cached key that no longer counts is read again"
    tokens = strict.server.management.tokens
    before = tokens.bearer("inference")
    tokens.bearer("inference", again=True)
    assert tokens.bearer("inference") != before and strict.predict({"sleep": 0})["batch"] == 1
    tokens._keys["inference"]["key"] = "stale"
    assert strict.predict({"sleep": 0})["batch"] == 1

def test_no_secret_in_a_worker_and_no_proxy_before_it(strict):
    "Variables that look like secrets stay here; a proxy named in the environment has not seen the keys: there is none"
    names = strict.predict({"sleep": 0})["names"]
    assert "MY_API_KEY" not in names and "PATH" in names

@pytest.mark.slow
def test_hung_worker_is_killed(strict):
    "A handler that never returns: its request fails, its process does not live on, the next request is answered"
    pid = strict.predict({"sleep": 0})["pid"]
    with pytest.raises(ToolkitError): strict.predict({"sleep": 0, "hang": True})
    wait_until(lambda: not psutil.pid_exists(pid), 20)
    strict.wait_ready()
    assert strict.predict({"sleep": 0})["pid"] != pid

@pytest.mark.slow
def test_stop_under_steady_traffic(sleepy):
    "Strangers keep sending: what was let in is answered, the rest is refused with words, and the stop does not wait for them"
    with LocalServer() as server:
        endpoint = deploy(server, sleepy)
        keys, url = server.management.tokens.bearer("inference"), f"{server._url(0)}/predictions/sleepy"
        def stranger(i):
            "Half of them keep their key, half read the file of keys each time, as the line does that `zz serve` prints"
            with httpx.Client(timeout=30) as http:
                while (r := http.post(url, json={"sleep": 0.05}, headers=keys if i % 2 else from_file())).status_code == 200: pass
                return r
        def from_file():
            try: return {"Authorization": "Bearer " + json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]}
            except (OSError, ValueError): return {}      # gone, or just being written
        with ThreadPoolExecutor(7) as pool:
            asked = [pool.submit(stranger, i) for i in range(4)]
            let_in = [pool.submit(endpoint.predict, {"sleep": 1}) for _ in range(3)]    # one at work, the others in the queue
            time.sleep(1)
            started = time.monotonic()
            server.stop()
            assert time.monotonic() - started < server.settings.drain_timeout
            assert [r.result(timeout=1)["batch"] for r in let_in] == [1, 1, 1]
            assert {(r.result().status_code, r.result().json()["type"]) for r in asked} == {(400, "InvalidKeyException")}
        with pytest.raises(ToolkitError, match="not running"): endpoint.predict({"sleep": 0})

def test_a_forked_child_does_not_stop_the_server(server, classifier, photo):
    child = os.fork()
    if not child:
        server.stop()
        os._exit(0)
    os.waitpid(child, 0)
    assert server.running and classifier.predict(photo)

def test_loopback_only(server):
    assert "0.0.0.0" not in (server.folder / "config.properties").read_text()
    java = next(p for p in psutil.Process(server.process.pid).children(recursive=True) if "java" in p.name())
    listening = [c.laddr for c in java.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) == 5 and {a.ip.removeprefix("::ffff:") for a in listening} == {"127.0.0.1"}
    assert server.folder.stat().st_mode & 0o077 == 0

@pytest.mark.slow
def test_nothing_survives_the_supervisor(sleepy):
    "kill -9 of the supervisor of a server: no Java, no worker (its owner is killed in test_conformance.py)"
    with killed_supervisor("torchserve", sleepy.path, timeout=30) as family:
        assert len(family) >= 3 and any("java" in p.name() for p in family)


class Echo(Handler):
    "Says what it has received"
    def preprocess(self, requests): return list(requests)
    def inference(self, xs): return xs
    def postprocess(self, xs): return [[type(x).__name__, self.shown(x)] for x in xs]
    def shown(self, x):
        if hasattr(x, "dtype"): return [str(x.dtype), *x.shape]
        return x[:4].hex() if isinstance(x, (bytes, bytearray)) else x

HERE = Path(__file__)
WHITE = np.full((2, 3, 3), 255, np.uint8)
PNG = ["bytearray", "89504e47"]
REQUESTS = {
    "text": ("Grüß Gott\n", ["str", "Grüß Gott\n"]),
    "empty text": ("", ["str", ""]),
    "text like JSON": ("[1]", ["str", "[1]"]),
    "text that is the name of a file": (str(HERE), ["str", str(HERE)]),
    "text of one long line": ("word " * 1000, ["str", "word " * 1000]),
    "file": (HERE, ["bytearray", HERE.read_bytes()[:4].hex()]),
    "bytes": (b"\xff\xfe\x00\x01", ["bytearray", "fffe0001"]),
    "record": ({"user": 7, "tags": ["a", None]}, ["dict", {"user": 7, "tags": ["a", None]}]),
    "number": (7, ["int", 7]),
    "nothing": (None, ["NoneType", None]),
    "array": (np.zeros((2, 3), np.float32), ["ndarray", ["float32", 2, 3]]),
    "tensor": (torch.zeros(4, dtype=torch.int64), ["ndarray", ["int64", 4]]),
    "image array": (WHITE, PNG),
    "PIL image": (PIL.Image.fromarray(WHITE), PNG),
    "list": ([[1, 2], "hello", 3.5], [["list", [1, 2]], ["str", "hello"], ["float", 3.5]]),
    "data frame": (pd.DataFrame({"price": [1.5, None], "brand": ["acer", None], "n": [1, 2]}),
                   [["dict", {"price": 1.5, "brand": "acer", "n": 1}], ["dict", {"price": None, "brand": None, "n": 2}]]),
}

@pytest.fixture(scope="module")
def echoes(server, tmp_path_factory):
    "The handler in this process, and on the server"
    home = tmp_path_factory.mktemp("echo")
    (home / "echo_handler.py").write_text("from zztoolkit import Handler\n\n" + inspect.getsource(Echo))
    endpoint = deploy(server, pack("echo", home / "echo_handler.py", store=home, example="hello", batchSize=4))
    yield {"local": Echo.local(), "endpoint": endpoint}
    endpoint.remove()

@pytest.mark.parametrize("where", ["local", "endpoint"])
@pytest.mark.parametrize("what", REQUESTS)
def test_requests_of_every_kind(echoes, what, where):
    given, received = REQUESTS[what]
    assert echoes[where].predict(given) == received

@pytest.mark.parametrize("headers, received", [({"Content-Type": "text/plain"}, ["str", "hi"]), ({"Content-Type": "text/plain; charset=utf-8"}, ["str", "hi"]),
                                               ({"Content-Type": "application/octet-stream"}, ["bytearray", "6869"]), ({}, ["bytearray", "6869"])])
def test_text_is_told_by_its_content_type(echoes, headers, received):
    "As any client may send it; a body without a content type stays bytes"
    endpoint = echoes["endpoint"]
    keys = endpoint.server.management.tokens.bearer("inference")
    r = httpx.post(f"{endpoint.server._url(0)}/predictions/echo", content=b"hi", headers=headers | keys, timeout=30)
    assert r.json() == received

def test_a_str_names_a_file_for_a_model_of_images(classifier, photo):
    "And for no other: the handler itself says which it is"
    assert classifier.takes_images() is True
    assert classifier.predict(str(photo)) == classifier.predict(photo) and classifier.predict([str(photo)])[0] == classifier.predict(photo)
    for wrong in ("a picture of a cat", ["a picture of a cat"]):
        with pytest.raises(ToolkitError, match="no file at a picture of a cat"): classifier.predict(wrong)

def test_what_a_str_is_is_not_asked_with_each_request(classifier, photo, monkeypatch):
    "A second of requests asks the management API once"
    classifier.predict(str(photo))
    asked = []
    monkeypatch.setattr(classifier.server.management, "_send", lambda *args, **kw: asked.append(args))
    assert classifier.predict(str(photo)) and not asked

@pytest.mark.slow
def test_a_new_version_says_again_what_a_str_is(serve_source, tiny, photo):
    "An endpoint outlives its model: text to the first version, a photograph to the second"
    endpoint = serve_source("changing", "from zztoolkit import Handler\n" + inspect.getsource(Echo), example="hello")
    assert endpoint.predict(str(photo)) == ["str", str(photo)]
    serve_source("changing", textwrap.dedent("""
        from zztoolkit import Handler, vision as V
        class Seeing(Handler):
            chain = V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())
            def postprocess(self, outputs): return [len(y) for y in outputs]
        """), tiny, version="2")
    assert endpoint.predict(str(photo)) == 1000

@pytest.mark.slow
def test_a_caller_cannot_ask_for_the_description(serve_source):
    "With TorchServe's own header it would take the answers of everybody in the batch"
    endpoint = serve_source("asked", "from zztoolkit import Handler\n" + inspect.getsource(Echo), example="hello", batch_size=4, max_batch_delay=300)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda n: endpoint.post(b"hello", "text/plain", **({"describe": "True"} if n == 0 else {})), range(3)))
    assert [(a.status_code, a.json()) for a in answers] == [(200, ["str", "hello"])] * 3

@pytest.mark.slow
def test_a_plain_torchserve_handler_gets_text(serve_source, tmp_path):
    "It does not say what it takes: a str that names a file is sent as that, any other is text"
    (tmp_path / "nothing.pt").write_bytes(b"")
    (tmp_path / "file.txt").write_bytes(b"from a file")
    endpoint = serve_source("plainly", "def handle(data, context): return data and [f'{type(row[\"body\"]).__name__} {bytes(row[\"body\"], \"utf8\") if isinstance(row[\"body\"], str) else bytes(row[\"body\"])}' for row in data]",
                            tmp_path / "nothing.pt", example="hello")
    assert endpoint.predict("hello") == "str b'hello'" and endpoint.predict(str(tmp_path / "file.txt")) == "bytearray b'from a file'"
