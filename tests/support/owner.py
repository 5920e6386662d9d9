"A process that starts a server, deploys an archive and waits: what survives if it is killed?"

OWNER = """
import json, sys, time
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import make_server
server = make_server(sys.argv[1]).start()
deploy(server, sys.argv[2])
print(json.dumps([str(server.folder), server.process.pid]), flush=True)
time.sleep(600)
"""
