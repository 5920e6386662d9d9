"A process that starts a server, deploys an archive and waits: what survives if it is killed, or told to end?"

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
