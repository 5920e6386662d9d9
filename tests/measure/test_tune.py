"TuneResult a real TorchServe: trials, going on, a setting that cannot start, applied under load, read out of the archive."
import signal, subprocess, sys, threading, time
from pathlib import Path

import pytest

from zztoolkit.archive.mar import open_mar
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.serving.rollout import deploy
from zztoolkit.measure.tuning.result import TuneResult, trial_table
from zztoolkit.measure.tuning.space import Parameter
from zztoolkit.measure.tuning.tuner import tune

WAITING = """
import os, time
from zztoolkit import Handler

class Waiting(Handler):
    "Thirty milliseconds a batch, however large: what a GPU does"
    def initialize(self, context):
        super().initialize(context)
        if self.config["batchSize"] > 4 and "/models/" in os.getcwd(): raise MemoryError("no room for so much")
    def preprocess(self, requests): return list(requests)
    def inference(self, xs):
        time.sleep(0.03)
        return xs
    def postprocess(self, xs): return [self.config["batchSize"]] * len(xs)
"""
PARAMETERS = [Parameter("workers", (1,)), Parameter("threads", (1,)), Parameter("batch_size", (1, 4, 8)), Parameter("max_batch_delay", (0,))]

@pytest.fixture
def waiting(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    return pack("waiting", tmp_path / "waiting.py", store=tmp_path / "store", example={}, maxBatchDelay=0, threads=1)


@pytest.mark.slow
def test_tune_goes_on_applies_and_writes(server, waiting, tmp_path):
    "The best setting is found, the killed tuning goes on, a setting that cannot start has its reason, and no request of eight clients fails while the best is put in its place"
    endpoint = deploy(server, waiting)
    said = []
    kw = dict(concurrency=4, slo="2s", folder=tmp_path / "tuning", parameters=PARAMETERS, sweep=(4,), seconds=1, patience=0)
    first = tune(endpoint, {}, trials=1, progress=said.append, **kw)
    assert [dict(t.setting) for t in first.trials] == [first.space.default] and any("trial 1 of 1, up to 1 min more: " in s and "p99" in s for s in said)
    found = tune(endpoint, {}, trials=5, **kw)
    assert found.trials[0] == first.trials[0] and len(found.trials) == 3       # there are no more settings
    [failed] = [t for t in found.trials if t.status == "failed"]
    assert failed.setting["batch_size"] == 8 and "MemoryError: no room for so much" in failed.reason
    assert found.best.setting["batch_size"] == 4 and found.gain > 1.1 and found.best.is_feasible(2, 0) and found.best.memory > 50
    with pytest.raises(ToolkitError, match="holds another tuning"): tune(endpoint, {}, trials=4, **kw | {"concurrency": 2})
    assert TuneResult.load(found.save(tmp_path / "found.json")) == found
    assert "MemoryError" in str(found) and "<table class='zz-table'>" in found._repr_html_() and "default" in trial_table(found).rows[0][-1]

    answers, failures, stop = set(), [], threading.Event()
    def client():
        while not stop.is_set():
            try: answers.add(endpoint.predict({}))
            except Exception as e: failures.append(e)
    clients = [threading.Thread(target=client) for _ in range(8)]
    for c in clients: c.start()
    try: found.apply(endpoint, tmp_path / "applied")
    finally:
        time.sleep(0.5)
        stop.set()
        for c in clients: c.join()
    assert not failures and answers == {1, 4} and endpoint.info["batchSize"] == 4
    applied = open_mar(tmp_path / "applied" / "waiting.mar")
    assert applied.config == waiting.config | {"batchSize": 4} and applied.version == endpoint.info["modelVersion"] == "2"
    assert found.write(waiting, tmp_path / "written").digest == applied.digest
    with pytest.raises(ToolkitError, match="is not the archive that was tuned"): found.write(applied, tmp_path / "again")
    endpoint.remove()

@pytest.mark.slow
def test_ctrl_c_gives_what_was_found(waiting, photo, tmp_path):
    "`zz tune`, interrupted in its second trial: the first is told, and kept"
    (tmp_path / "one.json").write_text("{}")
    zz = Path(sys.executable).parent / "zz"
    args = [zz, "tune", waiting.path, tmp_path / "one.json", "-c", "4", "--trials", "4", "--folder", tmp_path / "tuning", "--seconds", "1", "-k", "workers=1", "-k", "batch=1,2,4"]
    process = subprocess.Popen(list(map(str, args)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "tuning" / "trials.log"
    end = time.monotonic() + 120
    while not (journal.exists() and '"trial"' in journal.read_text()) and time.monotonic() < end: time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "ended after 1 of 4 trials" in out and "best: workers 1" in out, (out, err)
    assert open_mar(tmp_path / "tuning" / "waiting.mar").version == "2"
