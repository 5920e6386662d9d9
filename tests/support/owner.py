"A process that starts a server, deploys an archive and waits: what survives if it is killed, or told to end?"
from __future__ import annotations

import json, os, shutil, signal, subprocess, sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from zztoolkit.system import wait_until

OWNER = """
import json, sys, time
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server
server = make_server(sys.argv[1]).start()
deploy(server, sys.argv[2])
print(json.dumps([str(server.folder), server.process.pid]), flush=True)
time.sleep(600)
"""

# As `zz serve`, with settings: open to other processes, and SIGTERM drains it
SERVE = """
import json, signal, sys, threading
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server
from zztoolkit.serving.torchserve.config import Settings
name, archive, settings = sys.argv[1:]
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
with make_server(name, Settings(**json.loads(settings))) as server:
    deploy(server, archive)
    print(json.dumps([str(server.folder), *server.open_http()]), flush=True)
    stop.wait()
    sys.exit(0 if server.stop() else 1)
"""


@contextmanager
def killed_supervisor(name: str, archive: Path, timeout: float) -> Iterator[list[psutil.Process]]:
    "Yield a server's supervisor and all its processes, then kill -9 the supervisor: assert that none survives"
    owner, folder = subprocess.Popen([sys.executable, "-c", OWNER, name, str(archive)], stdout=subprocess.PIPE, text=True), ""
    try:
        folder, supervisor = json.loads(owner.stdout.readline())
        family = [psutil.Process(supervisor), *psutil.Process(supervisor).children(recursive=True)]
        yield family
        os.kill(supervisor, signal.SIGKILL)
        assert wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), timeout)
    finally:
        owner.kill()
        owner.wait()
        if folder: shutil.rmtree(folder, ignore_errors=True)     # the owner would have tidied it
