"The record of `make conformance`, and the page that shows it, say what the servers say of themselves; no server runs"
import json, os, re, subprocess, sys

import pytest

from conftest import ROOT
from test_conformance import LIMITS
from zztoolkit.serving.server import make_server, SERVERS
from zztoolkit.system import installed

RECORD = json.loads((ROOT / "nbs" / "records" / "conformance.json").read_text())
PAGE = json.loads((ROOT / "nbs" / "howto" / "choosing_a_server.ipynb").read_text())
MARKS = {"yes": "✓", "no": "✗", "": "·"}

on_each_server = pytest.mark.parametrize("server", list(SERVERS))


@on_each_server
def test_limits(server):
    "What a server cannot do has a test, and is in the record"
    limits = make_server(server).limits
    assert set(limits) <= set(LIMITS)
    assert {c for c in RECORD["servers"][server]["cells"].values() if c != "yes"} == {f"no: {why}" for why in limits.values()}

def test_page():
    "The page was saved with a mark for every cell of the record"
    output, = next(c["outputs"] for c in PAGE["cells"] if c["id"] == "marks")
    rows = [re.split(r"  +", line) for line in "".join(output["data"]["text/plain"]).splitlines()[1:]]
    servers = [RECORD["servers"][name] for name in (*SERVERS, "triton")]
    def marks(id): return [MARKS[s["cells"].get(id, "").partition(":")[0]] for s in servers]
    assert rows == [[text, *marks(id)] for id, text in RECORD["behaviours"].items()]

@on_each_server
def test_pins(server):
    "The version that an error names is the one that was tested, and if settings.ini pins it, the one that is installed"
    package, pin = SERVERS[server].package, SERVERS[server].pin
    assert RECORD["servers"][server]["version"] == pin
    if f"{package}=={pin}" in (ROOT / "settings.ini").read_text(): assert installed(package) == pin


TOY = '''
import pytest

@pytest.mark.behaviour("word", server="toy")
@pytest.mark.parametrize("x", [1, 2])
def test_word(x, record_property):
    if x == BAD: record_property("no", "it is short of words")
'''

def run_toy(folder, bad: int, *options: str) -> subprocess.CompletedProcess:
    "Hold a server to a suite of one behaviour; its second case says that it cannot if `bad` is 2"
    (folder / "test_toy.py").write_text(TOY.replace("BAD", str(bad)))
    command = [sys.executable, "-m", "pytest", "-p", "support.conformance", "--conformance", "record.json", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

def test_a_cell_that_differs_fails(tmp_path):
    "The run exits 1, says which cell, and leaves the record; --keep takes it over"
    def cells(): return json.loads((tmp_path / "record.json").read_text())["servers"]["toy"]["cells"]
    assert run_toy(tmp_path, 0).returncode == 0 and cells() == {"word": "yes"}
    run = run_toy(tmp_path, 2)
    assert run.returncode == 1 and cells() == {"word": "yes"}
    assert "toy, word: 'yes', now 'no: it is short of words'" in run.stdout
    assert run_toy(tmp_path, 2, "--keep").returncode == 0 and cells() == {"word": "no: it is short of words"}
