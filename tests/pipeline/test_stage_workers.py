"Stages with workers of their own: the same answers and errors from several processes, on mosec and on Ray Serve"
from __future__ import annotations

import json, os, signal
from concurrent.futures import ThreadPoolExecutor

import pandas as pd, psutil, pytest, torch

from zztoolkit import benchmark, compile_model, offline, tune
from zztoolkit.archive.mar import open_mar
from zztoolkit.archive.packing import pack
from zztoolkit.archive.reconfigure import with_config
from zztoolkit.errors import ToolkitError
from zztoolkit.measure.tuning.space import Parameter
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server
from zztoolkit.serving.torchserve.config import Settings
from zztoolkit.serving.triton.repository import write_model
from zztoolkit.system import wait_until

pytestmark = pytest.mark.slow

SOURCE = '''
from zztoolkit import Pipeline, RequestError, Stage
import numpy as np, os, time

def image(request):
    if request.get("reject"): raise RequestError("this request is rejected")
    return np.zeros((3, 32, 32), np.float32)

def cut(request, image):
    return [(image[:, i % 8:i % 8 + 16, :16] + i, request) for i in range(request.get("crops", 4))]

def pixels(crop):
    x, request = crop
    what = request.get("bad", {}).get(str(int(x[0, 0, 0])))
    if what == "raise": raise KeyError("no such crop")
    if what == "reject": raise RequestError("this crop is rejected")
    if what == "stuck": return lambda: x
    if what == "die": os._exit(3)
    if what == "hang": time.sleep(60)
    return x

def spell(grade):
    time.sleep(SLOW)
    return round(float(grade), 3)

def answer(request, words):
    names = [w if isinstance(w, float) else type(w).__name__ for w in words]
    return {"user": request.get("user"), "grades": names, "pid": os.getpid()}

class Crops(Pipeline):
    "Grades any number of crops of an image of zeros"
    stages = (
        Stage("image", image),
        Stage("crops", cut, inputs=("request", "image"), fan_out=True),
        Stage("pixels", pixels, on_error="ON_ERROR", workers=PIXELS),
        Stage("grade", "grade", batch_size=16, workers=(1, 2)),
        Stage("words", spell),
        Stage("answer", answer, inputs=("request", "words"), fan_in=True))
'''

RAY = pytest.param("ray", marks=pytest.mark.ray)


class Grade(torch.nn.Module):
    def forward(self, x): return x.mean((1, 2, 3))

@pytest.fixture(scope="module")
def models(): return {"grade": compile_model(Grade().eval(), torch.rand(4, 3, 16, 16), batch=(1, 32))}

@pytest.fixture(scope="module", params=["mosec", RAY])
def server(request):
    if request.param == "ray": pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    with make_server(request.param, Settings(response_timeout=20)) as running: yield running

def pack_crops(folder, models, version="1", on_error="request", pixels="1", slow=0, **config):
    "Return an archive; `version` must be new to the server"
    (folder / "crops.py").write_text(SOURCE.replace("ON_ERROR", on_error).replace("PIXELS", pixels).replace("SLOW", str(slow)))
    return pack("crops", folder / "crops.py", models, version, store=folder, example={"crops": 2}, **config)

def grades(n): return [float(i) for i in range(n)]

def send(server, *requests):
    "Return the responses to requests sent at once"
    def post(r): return server.post("crops", json.dumps(r).encode(), "application/json")
    with ThreadPoolExecutor(len(requests)) as pool: return list(pool.map(post, requests))


def test_same_answers_from_several_processes(server, models, tmp_path):
    "0, 1, 40 and 1,000 crops, eight clients at once: each gets its own; stages run in processes of their own"
    endpoint = deploy(server, pack_crops(tmp_path, models, batchSize=8, maxBatchDelay=20))
    assert (endpoint.status.workers, endpoint.status.stage_workers) == (1, {"pixels": (1, 1), "grade": (1, 1)})
    assert len(endpoint.status.pids) == 4 and "workers of grade 1 of 1 ready" in repr(endpoint)
    sizes = [0, 1, 40, 1000, 3, 0, 17, 5] * 3
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda iu: endpoint.predict({"crops": iu[1], "user": iu[0]}), enumerate(sizes)))
    assert len({a.pop("pid") for a in answers}) == 1
    assert answers == [{"user": i, "grades": grades(n)} for i, n in enumerate(sizes)]
    assert {"image", "crops", "to_pixels", "pixels", "grade", "words", "answer"} <= set(endpoint.read_metrics().stages)

def test_errors(server, models, tmp_path):
    "A crop that fails fails its request alone, wherever it fails; by declaration, itself alone"
    deploy(server, pack_crops(tmp_path, models, "2", batchSize=8, maxBatchDelay=50))
    bad = [{"1": what} for what in ("raise", "reject", "stuck")]
    responses = send(server, {"crops": 3}, *({"crops": 3, "bad": b} for b in bad), {"reject": 1}, {"crops": 1})
    assert [r.status_code for r in responses] == [200, 500, 400, 500, 400, 200]
    assert responses[0].json()["grades"] == grades(3) and "this crop is rejected" in responses[2].text
    log = lambda: "".join(server.worker_log("crops"))
    assert wait_until(lambda: "in stage pixels" in log() and "cannot go to another process" in log(), 5)
    endpoint = deploy(server, pack_crops(tmp_path, models, "3", "part"))
    assert endpoint.predict({"crops": 3, "bad": bad[0]})["grades"] == [0.0, "KeyError", 2.0]

@pytest.mark.parametrize("what", ["die", "hang"])
def test_a_stage_that_ends_its_worker(server, models, tmp_path, what):
    "The requests that are in it fail; those elsewhere, and those that wait for it, are answered"
    deploy(server, pack_crops(tmp_path, models, f"4.{len(what)}", responseTimeout=3))
    bad, *others = send(server, {"crops": 2, "bad": {"1": what}}, *({"crops": i} for i in range(6)))
    assert bad.status_code in (500, 503), bad.text
    assert [r.json().get("grades") for r in others] == [grades(i) for i in range(6)]

def test_killed_from_outside(server, models, tmp_path):
    "Each of its processes in turn: nothing but what it held is lost, and it comes back"
    endpoint = deploy(server, pack_crops(tmp_path, models, "5", batchSize=4))
    for pid in endpoint.status.pids:
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not psutil.pid_exists(pid), 10)
        assert endpoint.predict({"crops": 3})["grades"] == grades(3)

def test_swap_and_drain(server, models, tmp_path):
    "A swap under load: every request gets an answer of one of both versions"
    deploy(server, pack_crops(tmp_path, models, "6", batchSize=4))
    answers, is_over = [], []
    def client():
        while not is_over: answers.append(send(server, {"crops": 3})[0].status_code)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4): pool.submit(client)
        deploy(server, pack_crops(tmp_path, models, "7", batchSize=4))
        is_over.append(True)
    assert set(answers) == {200} and server.versions("crops") == ["7"]

def test_scale_and_other_workers(server, models, tmp_path):
    "`scale` leaves a stage's own workers; the configuration changes them, or takes them away"
    mar = pack_crops(tmp_path, models, "8")
    endpoint = deploy(server, with_config(mar, tmp_path / "b", version="9", stage_workers={"grade": 2, "pixels": 0}))
    assert endpoint.status.stage_workers == {"grade": (2, 2)}
    endpoint.scale(2)
    assert (endpoint.status.ready, endpoint.status.stage_workers) == (2, {"grade": (2, 2)})
    assert endpoint.predict({"crops": 2})["grades"] == grades(2)

def test_stage_times_add_up(server, models, tmp_path):
    "For one client the parts of a request are its latency; the bottleneck is a stage"
    endpoint = deploy(server, pack_crops(tmp_path, models, "10", slow=0.002))
    level = benchmark(endpoint, [{"crops": 30}], concurrency=1, seconds=4).levels[0]
    own = sum(v for k, v in level.stages.items() if k not in ("queue", "network", "client_queue", "server"))
    assert 0.95 * level.total.mean <= sum(level.stages.values()) <= 1.05 * level.total.mean
    assert own > 0.3 * level.total.mean, level.stages       # the rest is between the processes: most on Ray
    assert "in words" in str(benchmark(endpoint, [{"crops": 30}], concurrency=4, seconds=4).bottleneck)

def test_offline_equals_online(server, models, tmp_path):
    "Offline, where a stage's own workers are ignored"
    endpoint = deploy(server, pack_crops(tmp_path, models, "11", batchSize=8))
    rows = [{"user": i, "crops": i % 7} for i in range(40)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    offline.run(tmp_path / "crops.mar", tmp_path / "rows.parquet", tmp_path / "sink", key="user", chunk=16, processes=2)
    answers = offline.read(tmp_path / "sink").set_index("user")
    online = endpoint.predict(rows)
    assert [list(answers.grades[row["user"]]) for row in rows] == [answer["grades"] for answer in online]

def test_tuner_tries_stage_workers(models, tmp_path):
    "The workers of both stages are parameters on mosec; TorchServe alone cannot serve the archive"
    mar = pack_crops(tmp_path, models)
    own = [Parameter("workers_of_grade", (0, 2)), Parameter("workers_of_words", (0, 1))]     # of `words`, too
    result = tune(mar, [{"crops": 5}], concurrency=2, trials=4, seconds=1.5, sweep=(), patience=0, servers=["mosec"], parameters=own)
    settings = [t.setting for t in result.trials if t.rate]
    assert len(settings) == 4 and {"workers_of_pixels", "workers_of_grade", "workers_of_words"} <= set(settings[0])
    assert settings[0]["workers_of_pixels"] == settings[0]["workers_of_grade"] == 1     # the archive's own
    with pytest.raises(ToolkitError, match="(?s)could not be measured|TorchServe cannot give a stage"):
        tune(mar, [{"crops": 5}], trials=1, seconds=1.5, patience=0, servers=["torchserve"]).best

def test_servers_without_stage_workers_refuse(models, tmp_path):
    "TorchServe and Triton say which servers can; the archive knows its groups"
    mar = pack_crops(tmp_path, models)
    assert [g.stages for g in open_mar(mar.path).groups] == [("image", "crops"), ("pixels",), ("grade",), ("words", "answer")]
    with pytest.raises(ToolkitError, match="(?s)Triton cannot give a stage workers.*mosec or ray"): write_model(mar, tmp_path / "triton")
    with make_server("torchserve") as server, pytest.raises(ToolkitError, match="(?s)TorchServe cannot.*pixels, grade"): deploy(server, mar)
    with pytest.raises(ToolkitError, match="stage_workers names a stage that is not here"):
        pack_crops(tmp_path, models, stage_workers={"nobody": 1})
