"The load generator agrees with wrk, and the verdict is right on services built to be bound by one thing."
import io, re, shutil, statistics, subprocess, sys
from dataclasses import replace
from pathlib import Path

import PIL.Image, psutil, pytest

from conftest import missing
from zztoolkit.archive.packing import pack
from zztoolkit.measure.benchmarking import benchmark
from zztoolkit.measure.comparison import compare
from zztoolkit.measure.levels import resolve_target
from zztoolkit.measure.results import Benchmark
from zztoolkit.errors import ToolkitError
from zztoolkit.measure.connections import Target
from zztoolkit.measure.load import send_load
from zztoolkit.measure.profile import closed_loop, open_loop
from zztoolkit.serving.rollout import deploy

BUILT = """
import time
from zztoolkit import Handler
from zztoolkit.errors import InputError
from zztoolkit.handler.inputs import as_json

class Built(Handler):
    def preprocess(self, requests): return list(map(as_json, requests))    # bytes over gRPC, which has no content type
    def inference(self, xs):
        if any(x.get("wrong") for x in xs): raise InputError("wrong")
        end = time.perf_counter() + sum(x.get("work", 0) for x in xs)
        while time.perf_counter() < end: pass
        time.sleep(sum(x.get("sleep", 0) for x in xs))
        return xs
    def postprocess(self, xs): return [len(xs)] * len(xs)
"""

DECODING = """
from zztoolkit import Handler, vision as V
class Decoding(Handler):
    chain = V.Chain(V.Decode(), V.Normalize(mean=(0, 0, 0), std=(1, 1, 1)))
    def inference(self, xs): return [float(x[0, 0, 0]) for x in xs]
    def postprocess(self, xs): return xs
"""

@pytest.fixture(scope="module")
def built(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    (folder / "built.py").write_text(BUILT)
    yield (endpoint := deploy(server, pack("built", folder / "built.py", store=folder, example={"work": 0}, threads=1)))
    endpoint.remove()

@pytest.fixture
def camera_photo(photo) -> bytes:
    "Three megapixels"
    buf = io.BytesIO()
    PIL.Image.open(photo).convert("RGB").resize((2048, 1536)).save(buf, "JPEG", quality=92)
    return buf.getvalue()


def wrk(at: Target, body: str, clients: int, seconds: int, folder: Path) -> tuple[float, float]:
    "Requests in a second and the median latency in milliseconds, as wrk sees them"
    headers = "\n".join(f'wrk.headers["{k}"] = "{v}"' for k, v in {**at.headers, "Content-Type": "application/json"}.items())
    script = folder / "post.lua"
    script.write_text(f"wrk.method = 'POST'\nwrk.body = '{body}'\n{headers}\n")
    said = subprocess.run(["wrk", "-t1", f"-c{clients}", f"-d{seconds}", "--latency", "-s", str(script), f"http://127.0.0.1:{at.port}{at.path}"], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in said, said
    ms, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", said).groups()
    return float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]), float(ms) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]

def test_agrees_with_wrk(built, tmp_path):
    "The same endpoint, a second each in turn: rate and median latency within 5 %"
    if not shutil.which("wrk"): missing("wrk is not installed (apt-get install wrk)")
    at, body, ratios = resolve_target(built), '{"work": 0.004}', []
    send_load(at, {"work": 0.004}, closed_loop(4), 1)
    for attempt in range(15):
        theirs = wrk(at, body, 4, 1, tmp_path)
        ours = send_load(at, {"work": 0.004}, closed_loop(4), 1)
        assert not ours.errors
        ratios.append((len(ours) / theirs[0], 1000 * statistics.median(ours.latency) / theirs[1]))
        rate, latency = (statistics.median(r) for r in zip(*ratios))
        print(f"ours / wrk: rate {rate:.3f}, median latency {latency:.3f}, after {attempt + 1}")
        if attempt >= 2 and abs(rate - 1) < 0.05 and abs(latency - 1) < 0.05: return
    raise AssertionError(ratios)

def test_open_loop_counts_waiting(built):
    "40 ms a request is 25 a second; asked for 50, the wait grows with every request, and is counted although TorchServe holds few of them"
    under, over = (send_load(resolve_target(built), {"sleep": 0.04}, open_loop(rate, limit=8), 2) for rate in (10, 50))
    assert 0.04 < statistics.median(under.latency) < 0.3
    assert over.latency[-1] > 0.7 and over.latency[-1] > 4 * statistics.median(over.latency[:10])
    assert (over.done - over.sent).max() < (over.sent - over.due).max()      # a closed loop of eight would have seen this
    assert 5 < len(over) / 2 < 26

def test_errors_by_kind(built):
    sent = send_load(resolve_target(built), [{"work": 0}, {"wrong": True}, {"work": "x"}], closed_loop(3), 0.5)
    assert set(sent.errors) == {"422 InputError", "500 InternalError"} and len(sent.latency) > 5
    assert set(send_load(Target(built.server.ports[0], "/predictions/built"), {}, closed_loop(1), 0.3).errors) == {"400 InvalidKeyException"}
    with pytest.raises(ToolkitError, match="no request got a good response"): benchmark(built, {"wrong": True}, (1,), seconds=4, warmup=0)


def check_sums(found: Benchmark):
    for l in found.levels: assert abs(sum(l.stages.values()) - l.total.mean) < 0.01 and abs(l.stages["network"]) < 0.4 * l.total.mean + 10, l.stages

def test_decode_bound(serve_source, camera_photo):
    endpoint = serve_source("decoding", DECODING, batchSize=2, threads=1)
    found = benchmark(endpoint, [camera_photo], (3,), seconds=4, warmup=1)
    check_sums(found)
    assert found.bottleneck.resource == "decode" and found.levels[0].stages["decode"] > 0.3 * found.levels[0].total.mean, found
    assert found.levels[0].usage.cores["workers"] > 0.3 and found.bottleneck.gain > 1

def test_model_bound_and_compare(built, tmp_path):
    slow, fast = (benchmark(built, {"work": work}, (3,), seconds=4, warmup=1, slo="20ms") for work in (0.02, 0.01))
    check_sums(slow)
    assert slow.bottleneck.resource == "inference" and slow.levels[0].worker_utilization > 0.9, slow
    changes = {c.metric: c for c in compare(Benchmark.load(slow.save(tmp_path / "slow.json")), fast)}
    assert 1.3 < changes["rate"].ratio < 3 and ("inference" not in changes or changes["inference"].ratio < 0.8)
    assert changes["rate"].significant or changes["rate"].disturbed       # what others take of the machine meanwhile counts for nothing
    assert slow.within is None and "none of the measured loads" in str(slow)

def test_queue_bound(serve_source):
    endpoint = serve_source("delayed", BUILT.replace("Built", "Delayed"), example={"work": 0}, batchSize=8, maxBatchDelay=150)
    found = benchmark(endpoint, {"work": 0.002}, (2,), seconds=4, warmup=1)
    check_sums(found)
    assert found.bottleneck.resource == "queue" and "150 ms" in found.bottleneck.description and found.bottleneck.gain > 3, found
    assert found.levels[0].stages["queue"] > 130

def test_load_generator_bound(built):
    "A sender that gets of one core what others leave, which is little"
    hogs = []
    def starve(load):
        sender = psutil.Process(load.process.pid)
        hogs.extend(subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2))
        for p in (sender, *(psutil.Process(h.pid) for h in hogs)): p.cpu_affinity([0])
        sender.nice(19)
        if (group := Path(f"/proc/{sender.pid}/autogroup")).exists(): group.write_text("19")     # it leads a session, whose niceness counts first
    try: found = benchmark(built, {"work": 0}, (4,), seconds=4, warmup=1, started=starve)
    finally:
        for h in hogs: h.kill(); h.wait()
    assert found.bottleneck.resource == "load generator", found


def test_grpc(built):
    "The same service by TorchServe's other protocol; what the handler refuses is counted although gRPC has no status for it"
    found = benchmark(built, {"work": 0}, (2,), seconds=4, warmup=0.5, grpc=True)
    assert found.levels[0].total.rate > 20 and not found.levels[0].errors
    sent = send_load(resolve_target(built, grpc=True), [{"work": 0}, {"wrong": True}], closed_loop(2), 0.5)
    assert set(sent.errors) == {"InputError"} and len(sent.latency) > 2
    assert set(send_load(replace(resolve_target(built, grpc=True), headers={}), {}, closed_loop(1), 0.3).errors) <= {"gRPC PERMISSION_DENIED", "gRPC UNAUTHENTICATED", "gRPC INVALID_ARGUMENT"}
