"One archive on every server: compared in turns, tuned with the server as a parameter, moved to the best one."
from contextlib import suppress
from dataclasses import replace

import psutil, pytest
from typer.testing import CliRunner

from zztoolkit.archive.packing import pack
from zztoolkit.cli.main import app
from zztoolkit.errors import ToolkitError
from zztoolkit.measure.server_result import ServerComparison
from zztoolkit.measure.servers import choose_servers, compare_servers
from zztoolkit.measure.tuning.result import TuneResult
from zztoolkit.measure.tuning.space import Parameter
from zztoolkit.measure.tuning.tuner import tune
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server
from zztoolkit.system import wait_until

SHOUT = """
import os
from zztoolkit import Handler, RequestError

class Shout(Handler):
    def preprocess(self, requests): return list(requests)
    def inference(self, xs): return xs
    def postprocess(self, xs): return [self.answer(x) for x in xs]
    def answer(self, x):
        if x == {"word": "no"}: raise RequestError("not this one")
        return os.getpid() if x == {"word": "who"} else x
"""
BOTH = ("torchserve", "mosec")

@pytest.fixture(scope="module")
def shout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shout")
    (folder / "shout.py").write_text(SHOUT)
    return pack("shout", folder / "shout.py", store=folder / "store", example={}, threads=1, maxBatchDelay=0)

@pytest.fixture
def words(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    for word in ("hello", "who"): (folder / f"{word}.json").write_text(f'{{"word": "{word}"}}')
    return folder

@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch): monkeypatch.setattr("zztoolkit.measure.server_turn.WARM_UP", 0.3)

def children() -> set[int]:
    "Processes of this one that still run"
    found = set()
    for p in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if p.status() != psutil.STATUS_ZOMBIE: found.add(p.pid)
    return found


@pytest.mark.slow
def test_two_servers(shout, words, tmp_path):
    "The response with the process id differs, the other does not; no request in flight is lost; all processes have ended"
    before, said = children(), []
    found = compare_servers(shout, words, BOTH, clients=4, rounds=1, seconds=1, tries=1, progress=said.append)
    assert [(r.name, r.differing) for r in found.rows] == [("torchserve", 0), ("mosec", 1)]
    for [turn] in (r.turns for r in found.rows):
        assert turn.rate > 20 and turn.memory > 50 and turn.cores > 0 and turn.start > 0 and not turn.errors
        assert turn.drain.in_flight > 0 and turn.drain.lost == 0
    assert ["the reference", "no: 1 of 2 differ"] == [row[1] for row in found.table.rows]
    assert "round 1 of 1, mosec: start" in said and any("round 1 of 1, torchserve: 4 clients: " in s for s in said)
    assert str(ServerComparison.load(found.save(tmp_path / "c.json"))).splitlines()[:2] == str(found).splitlines()[:2]
    assert wait_until(lambda: children() <= before, 20)

@pytest.mark.slow
def test_rejected_request(shout, words):
    "The command names the file and the handler's words, and nothing goes on running"
    (words / "no.json").write_text('{"word": "no"}')
    before = children()
    outcome = CliRunner().invoke(app, ["ladder", str(shout.path), str(words), "--server", "mosec"])
    assert outcome.exit_code == 1 and "shout does not accept no.json" in outcome.output
    assert "400 RequestError: not this one" in outcome.output and wait_until(lambda: children() <= before, 20)

@pytest.mark.parametrize("args, words_of_error", [
    (["nothing.mar", "."], "no archive at nothing.mar"), (["SHOUT"], "nothing to send"), (["SHOUT", "EMPTY"], "a folder without files"),
    (["SHOUT", "missing"], "nothing at missing"), (["SHOUT", "EMPTY", "--paces"], "--paces has no meaning with an archive"),
    (["SHOUT", "EMPTY", "--server", "tomcat"], "no such server")])
def test_mistakes_of_the_command(shout, tmp_path, args, words_of_error):
    "Each is found before anything starts"
    (tmp_path / "empty").mkdir()
    known = {"SHOUT": str(shout.path), "EMPTY": str(tmp_path / "empty")}
    outcome = CliRunner().invoke(app, ["ladder", *(known.get(a, a) for a in args)])
    assert outcome.exit_code == 1 and words_of_error in outcome.output

def test_server_that_is_not_installed(monkeypatch):
    "It is left out with the command that installs it; by name it is an error"
    monkeypatch.setattr("zztoolkit.serving.server.installed", lambda package: "" if package == "mosec" else "1")
    names, left_out = choose_servers(None)
    assert "torchserve" in names and "mosec" not in names and left_out["mosec"] == "mosec is not installed; pip install mosec==0.9.8"
    with pytest.raises(ToolkitError, match="mosec is not installed"): choose_servers(["mosec"])


@pytest.mark.slow
def test_tune_over_servers(server, shout, tmp_path):
    "Both servers are tried; the best setting is applied on its own server only, to which the model moves"
    endpoint = deploy(server, shout)
    parameters = [Parameter("workers", (1,)), Parameter("threads", (1,)), Parameter("batch_size", (1,)), Parameter("max_batch_delay", (0,))]
    found = tune(endpoint, {}, 2, trials=2, parameters=parameters, sweep=(), seconds=1, patience=0, servers=("mosec", "torchserve"))
    assert [t.setting["server"] for t in found.trials] == ["torchserve", "mosec"] and all(t.rate for t in found.trials)
    assert str(found).startswith("shout on torchserve and mosec: 2 of 2 settings") and "best: server " in str(found)
    assert TuneResult.load(found.save(tmp_path / "t.json")) == found
    on_mosec = replace(found, trials=found.trials[1:])
    assert on_mosec.best_server == "mosec" and "server" not in on_mosec.write(shout, tmp_path / "best").config
    with pytest.raises(ToolkitError, match="the best setting is for mosec"): on_mosec.apply(endpoint)
    with make_server("mosec") as other:
        moved = on_mosec.apply(endpoint, tmp_path / "applied", server=other)
        assert moved.server is other and moved.predict({"word": "hi"}) == {"word": "hi"}
        assert "shout" not in server.models()
