"""Pipelines in a server: several models in one worker, crops batched across requests, each request failing alone"""
from __future__ import annotations

import json, os, re
from concurrent.futures import ThreadPoolExecutor

import pandas as pd, pytest, torch

from zztoolkit import benchmark, compile_model, offline
from zztoolkit.archive.mar import open_mar
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server
from zztoolkit.serving.torchserve.config import Settings
from zztoolkit.system import wait_until

SOURCE = '''
from zztoolkit import Pipeline, RequestError, Stage, vision as V
import numpy as np, os, time

def to_grid(body):
    "A request is an image, or JSON: how many crops, and what is to happen"
    return body

def cut(request, image):
    count = request.get("crops", 4)
    if request.get("reject"): raise RequestError("this request is rejected")
    return [(image[:, i % 8:i % 8 + 16, :16] + i, request) for i in range(count)]

def pixels(crop):
    x, request = crop
    what = request.get("bad", {}).get(str(int(round(float(x[0, 0, 0])))))
    if what == "raise": raise KeyError("no such crop")
    if what == "die": os._exit(3)
    if what == "hang": time.sleep(60)
    return x

def answer(request, grades):
    return {"user": request.get("user"), "grades": [round(float(g), 3) if not isinstance(g, Exception) else type(g).__name__ for g in grades]}

class Crops(Pipeline):
    "Grades any number of crops of an image of zeros"
    stages = (
        Stage("image", lambda request: np.zeros((3, 32, 32), np.float32)),
        Stage("crops", cut, inputs=("request", "image"), fan_out=True),
        Stage("pixels", pixels, on_error="ON_ERROR"),
        Stage("grade", "grade", batch_size=16),
        Stage("answer", answer, inputs=("request", "grade"), fan_in=True))
'''


class Grade(torch.nn.Module):
    def forward(self, x): return x.mean((1, 2, 3))

@pytest.fixture(scope="module")
def models(): return {"grade": compile_model(Grade().eval(), torch.rand(4, 3, 16, 16), batch=(1, 32))}

@pytest.fixture(scope="module", params=["torchserve", "mosec"])
def server(request):
    with make_server(request.param, Settings(response_timeout=20)) as running: yield running

def pack_crops(folder, models, on_error="request", **config):
    (folder / "crops.py").write_text(SOURCE.replace("ON_ERROR", on_error))
    return pack("crops", folder / "crops.py", models, store=folder, example={"crops": 2}, **config)

def grades(n): return [float(i) for i in range(n)]


@pytest.mark.slow
def test_any_number_of_crops(server, models, tmp_path):
    "0, 1, 40 and 1,000 crops, eight clients at once: each gets its own"
    endpoint = deploy(server, pack_crops(tmp_path, models, batchSize=8, maxBatchDelay=20))
    sizes = [0, 1, 40, 1000, 3, 0, 17, 5] * 3
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda iu: endpoint.predict({"crops": iu[1], "user": iu[0]}), enumerate(sizes)))
    assert answers == [{"user": i, "grades": grades(n)} for i, n in enumerate(sizes)]
    stages = endpoint.read_metrics().stages
    assert {"image", "crops", "pixels", "grade", "answer"} <= set(stages)

@pytest.mark.slow
def test_a_crop_that_fails(server, models, tmp_path):
    "It fails its request alone; by declaration, itself alone"
    endpoint = deploy(server, pack_crops(tmp_path, models, version="2", batchSize=4, maxBatchDelay=50))
    requests = [{"crops": 3}, {"crops": 3, "bad": {"1": "raise"}}, {"crops": 2, "reject": 1}, {"crops": 1}]
    with ThreadPoolExecutor(4) as pool: bodies = list(pool.map(lambda r: server.post("crops", json.dumps(r).encode(), "application/json"), requests))
    assert [b.status_code for b in bodies] == [200, 500, 400, 200]
    assert bodies[0].json()["grades"] == grades(3) and "this request is rejected" in bodies[2].text
    assert wait_until(lambda: "in stage pixels" in "".join(server.worker_log("crops")), 5)
    endpoint = deploy(server, pack_crops(tmp_path, models, "part", version="3"))
    assert endpoint.predict(requests[1]) == {"user": None, "grades": [0.0, "KeyError", 2.0]}

@pytest.mark.slow
def test_a_stage_that_ends_its_worker(server, models, tmp_path):
    "Killed, or hanging: that request is answered with an error, and the next ones are served"
    endpoint = deploy(server, pack_crops(tmp_path, models, version="4", responseTimeout=3))
    for what in ("die", "hang"):
        r = server.post("crops", json.dumps({"crops": 2, "bad": {"1": what}}).encode(), "application/json")
        assert r.status_code in (500, 503), r.text
        assert wait_until(lambda: endpoint.status.ready == 1, 30)
        assert endpoint.predict({"crops": 2})["grades"] == grades(2)

def test_offline_equals_online(server, models, tmp_path):
    "A table of requests through the archive: each row gets the answer that the server gives, and a bad one its error"
    endpoint = deploy(server, pack_crops(tmp_path, models, version="5", batchSize=8))
    rows = [{"user": i, "crops": i % 7, "reject": i == 17} for i in range(60)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    run = offline.run(tmp_path / "crops.mar", tmp_path / "rows.parquet", tmp_path / "sink", key="user", chunk=16, processes=2)
    assert (run.rows, run.rejected) == (60, 1)
    answers = offline.read(tmp_path / "sink").set_index("user")
    del rows[17]
    online = endpoint.predict(rows)
    assert [list(answers.grades[row["user"]]) for row in rows] == [answer["grades"] for answer in online]

@pytest.mark.slow
def test_bottleneck_is_a_stage(server, models, tmp_path):
    "A benchmark names the stage that the time goes to"
    endpoint = deploy(server, pack_crops(tmp_path, models, version="6", workers=1))
    result = benchmark(endpoint, [{"crops": 400}], concurrency=2, seconds=4)
    assert re.search("in (crops|pixels)", str(result.bottleneck)), result.bottleneck

@pytest.mark.slow
def test_archive(models, tmp_path):
    "One archive holds every model; what is missing is an error before anything is served"
    mar = pack_crops(tmp_path, models)
    assert list(mar.artifacts) == ["models/grade"] and open_mar(mar.path).config["models"] == {"grade": "models/grade"}
    with pytest.raises(ToolkitError, match="needs a model that is not here"): pack_crops(tmp_path, {})
    assert open_mar(mar.path).digest == mar.digest and os.listdir(tmp_path).count("crops.mar") == 1
