"Sides in turns, over a real TorchServe, a real mosec and in processes without a server. How fast they are is for `make ladder` to say."
from contextlib import suppress
from dataclasses import replace

import psutil

import pytest

from zztoolkit.benchmarks.ladder import TUNED, Ladder, Rung, ladder
from zztoolkit.system import wait_until

def children() -> set[int]:
    "Processes of this one, but for the one with which multiprocessing tidies up at the end"
    found = set()
    for p in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):        # it has ended meanwhile
            if "resource_tracker" not in " ".join(p.cmdline()): found.add(p.pid)
    return found

@pytest.mark.slow
def test_a_rung_and_the_ceilings(photos, tmp_path, monkeypatch):
    "No turn is taken again for what the tests beside this one take of the cores"
    monkeypatch.setattr("zztoolkit.measure.bottleneck.NOISE_CORES", 99)
    before, told, tuned = children(), [], Rung("imagenet_classifier", TUNED)
    found = ladder(photos[:3], rounds=1, seconds=2, clients=2, peers=[], rungs={"tuned": tuned, "tuned on mosec": replace(tuned, server="mosec")}, progress=told.append)
    assert [(s.name, s.kind) for s in found.sides] == [("chain alone", "ceiling"), ("chain + model", "ceiling"), ("tuned", "rung"), ("tuned on mosec", "server")]
    assert all(t.rate > 0 and not t.errors for s in found.sides for t in s.turns)
    assert {"decode", "inference"} < set(found["tuned"].turns[0].stages) and "round 1 of 1, 3 of 4: tuned" in told
    assert found.last_line().startswith("tuned/ceiling=") and found.last_line().endswith(("tuned=torchserve", "tuned=mosec")) and "tuned/ceiling=" in str(Ladder.load(found.save(tmp_path / "ladder.json")))
    assert wait_until(lambda: children() <= before, 20)
