"What mosec has and other servers do not: a supervisor, a front and guards. The rest is in test_conformance.py"
import json, os, signal, threading, time

import httpx, psutil, pytest

from support.owner import killed_supervisor
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.serving.mosec.server import MosecServer
from zztoolkit.serving.rollout import deploy
from zztoolkit.system import wait_until

WORDS = """
from zztoolkit import Handler
class Words(Handler):
    def preprocess(self, xs): return list(xs)
    def inference(self, xs): return [x.upper() for x in xs]
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    (folder / "words.py").write_text(WORDS)
    return pack("words", folder / "words.py", store=folder, example="hi")

@pytest.fixture(scope="module")
def endpoint(words):
    with MosecServer() as server: yield deploy(server, words)


@pytest.mark.slow
def test_nothing_survives_the_supervisor(words):
    "kill -9 of the supervisor: no process is left"
    with killed_supervisor("mosec", words.path, timeout=15) as family: assert len(family) == 4     # mosec's front, a guard and its worker

@pytest.mark.slow
@pytest.mark.parametrize("part", ["front", "guard"])
def test_parts_come_back(endpoint, part):
    "kill -9 of mosec's own program, or of a guard with its worker: requests wait for the next one"
    assert wait_until(lambda: all(map(psutil.pid_exists, endpoint.status.pids)), 10)
    worker = psutil.Process(endpoint.status.pids[0])
    os.kill(endpoint.server.frontend[0] if part == "front" else worker.ppid(), signal.SIGKILL)
    assert wait_until(lambda: not psutil.pid_exists(worker.pid), 10)
    assert endpoint.predict("hi") == "HI"

def test_a_response_knows_its_request(endpoint):
    "As of any HTTP client: `raise_for_status` works"
    assert endpoint.post(b"hi").raise_for_status().content == b"HI"
    with pytest.raises(httpx.HTTPStatusError, match="404"): endpoint.server.post("nobody", b"hi").raise_for_status()

WITHOUT_PROGRAM = "import mosec.utils\nmosec.utils.get_mosec_path = lambda: None\n"

@pytest.mark.slow
def test_a_front_that_does_not_start_is_an_error_at_once(words, monkeypatch, tmp_path):
    "mosec's files are not complete: the version fails, with what to do, and the server goes on"
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with MosecServer() as server:
        for _ in range(2):
            with pytest.raises(ToolkitError, match="pip install --force-reinstall mosec"): deploy(server, words)
        assert server.running and not server.models()

SLOW = """
import time
from pathlib import Path
from zztoolkit import Handler
class Slow(Handler):
    def preprocess(self, xs): return list(xs)
    def inference(self, xs): return xs
    def initialize(self, context):
        super().initialize(context)
        if Path({packed!r}).exists(): time.sleep(60)
"""

@pytest.mark.slow
def test_a_supervisor_that_ends_meanwhile_is_an_error_at_once(tmp_path):
    "A version that loads slowly is not waited for until its time is over"
    packed = tmp_path / "packed"
    (tmp_path / "slow.py").write_text(SLOW.format(packed=str(packed)))
    slow = pack("slow", tmp_path / "slow.py", store=tmp_path, example="hi")
    packed.touch()
    with MosecServer() as server:
        threading.Timer(2, server.process.kill).start()
        with pytest.raises(ToolkitError, match="mosec has ended"): deploy(server, slow)

SLOW_START = """
import time
from pathlib import Path
from zztoolkit import Handler
class Slow(Handler):
    def initialize(self, context):
        super().initialize(context)
        if Path(FOLDER, "slow").exists(): time.sleep(60)
    def preprocess(self, xs): return list(xs)
    def inference(self, xs): return xs
"""

@pytest.mark.slow
def test_scaling_ends_with_the_server(tmp_path):
    "A supervisor that is killed while a worker starts: whoever waits for the worker learns it at once"
    (tmp_path / "slow.py").write_text(SLOW_START.replace("FOLDER", repr(str(tmp_path))))
    with MosecServer() as server:
        deploy(server, pack("slow", tmp_path / "slow.py", store=tmp_path, example="hi"))
        (tmp_path / "slow").touch()
        threading.Timer(1, server.process.kill).start()
        begin = time.monotonic()
        with pytest.raises(ToolkitError, match="mosec has ended"): server.scale("slow", 2)
        assert time.monotonic() - begin < 10

@pytest.mark.slow
def test_nothing_is_left_of_a_version(words):
    "Its files, and what the supervisor noted of it"
    with MosecServer() as server:
        for _ in range(3):
            deploy(server, words)
            server.retire("words", words.version, 5)
        assert [*(server.folder / "tmp" / "models").iterdir()] == [] and [*(server.folder / "versions").iterdir()] == []
        empty = lambda: json.loads((server.folder / "state.json").read_text()) == {"versions": {}, "drained": {}, "failed": {}}
        assert wait_until(empty, 5)
