"What mosec has and other servers do not: a supervisor, a front and guards. The rest is in test_conformance.py"
import os, signal

import psutil, pytest

from support.owner import killed_supervisor
from zztoolkit.archive.packing import pack
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


def test_nothing_survives_the_supervisor(words):
    "kill -9 of the supervisor: no process is left"
    with killed_supervisor("mosec", words.path, timeout=15) as family: assert len(family) == 4     # mosec's front, a guard and its worker

@pytest.mark.parametrize("part", ["front", "guard"])
def test_parts_come_back(endpoint, part):
    "kill -9 of mosec's own program, or of a guard with its worker: requests wait for the next one"
    assert wait_until(lambda: all(map(psutil.pid_exists, endpoint.status.pids)), 10)
    worker = psutil.Process(endpoint.status.pids[0])
    os.kill(endpoint.server.frontend[0] if part == "front" else worker.ppid(), signal.SIGKILL)
    assert wait_until(lambda: not psutil.pid_exists(worker.pid), 10)
    assert endpoint.predict("hi") == "HI"
