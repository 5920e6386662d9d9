"Replicas in network namespaces, and haproxy before them: as a gateway (every request is balanced) and as a Service (connections are, and stay where they are)."
from __future__ import annotations

import json, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path

import httpx, numpy as np

from support.pods import SERVER, Pod
from zztoolkit.deploy.helm import helm, objects_in
from zztoolkit.deploy.values import chart_folder
from zztoolkit.measure.connections import Target
from zztoolkit.measure.load import LoadGenerator, Responses
from zztoolkit.measure.profile import closed_loop, open_loop, read_payloads
from zztoolkit.serving.torchserve.config import free_ports

NET, BRIDGE = "10.213.77", "zz-bridge"
PORTS = (8000, 8080, 8081, 8082, 8083)
BODY = {"x": 1, "sleep": 0.04}
SLOW = 1.0      # seconds

def sh(*args, check: bool = True) -> str: return subprocess.run(args, capture_output=True, text=True, check=check).stdout

@contextmanager
def network(n: int):
    "A bridge with `n` network namespaces on it: zz1 at .11, zz2 at .12, ..."
    names = [f"zz{i + 1}" for i in range(n)]
    try:
        sh("ip", "link", "add", BRIDGE, "type", "bridge")
        sh("ip", "addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        sh("ip", "link", "set", BRIDGE, "up")
        for i, name in enumerate(names):
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", f"{name}-out", "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", f"{name}-out", "master", BRIDGE, "up")
            for words in (f"addr add {NET}.{11 + i}/24 dev eth0", "link set eth0 up", "link set lo up"): sh("ip", "-n", name, *words.split())
        yield names
    finally:
        for name in names:
            sh("ip", "link", "del", f"{name}-out", check=False)
            sh("ip", "netns", "del", name, check=False)
        sh("ip", "link", "del", BRIDGE, check=False)

_HAPROXY = """global
  maxconn 2000
defaults
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
  default-server check inter 1s fall 2 rise 1 port {check_port}
frontend gateway
  mode http
  bind 127.0.0.1:{gateway}
  default_backend pods
backend pods
  mode http
  balance roundrobin
  option httpchk GET {check}
{retries}
{servers}
listen service
  mode tcp
  balance random
  bind 127.0.0.1:{service}
  option httpchk GET {check}
  retries 0
{servers}
"""
# what a gateway may send again: predictions change nothing
_RETRIES = """  retries 3
  option redispatch 1
  option http-buffer-request
  retry-on conn-failure empty-response response-timeout 503"""

def of_the_chart() -> tuple[list[str], int]:
    "How the chart's pods begin and end: the options of their command line that say so, and the grace period"
    models = [dict(name="echo", version="1.0", file="echo.mar", sha256="0" * 64)]
    objects = objects_in(helm("template", "zz", str(chart_folder()), "--set-json", f"models={json.dumps(models)}", "--set", f"auth.enabled=false,server.kind={SERVER}"))
    pod = next(o for o in objects if o["kind"] == "Deployment")["spec"]["template"]["spec"]
    said = [a for a in pod["containers"][0]["args"] if a.startswith(("--server", "--endpoint-wait", "--drain-timeout", "--startup-timeout", "--job-queue-size", "--max-request-size"))]
    return said, pod["terminationGracePeriodSeconds"]

class Cluster:
    "Replicas behind haproxy; `naive` ones are plain TorchServe, whose /ping says when they are ready"
    def __init__(self, folder: Path, names: list[str], *args, naive: bool = False, retry: bool = False):
        self.folder, self.names, self.args, self.naive, self.retry = folder, names, args, naive, retry
        self.gateway, self.service = free_ports(2)
        self.pods: dict[str, Pod] = {}
        self.chart_args, self.grace = of_the_chart()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Cluster:
        for name in self.names[:3]: self.start(name)
        for name in self.names[:3]: self.await_ready(name)
        servers = "\n".join(f"  server {n} {self.address(n)}:8000" for n in self.names)
        check, port = ("/ping", 8000) if self.naive else ("/readyz", 8083)
        (self.folder / "haproxy.cfg").write_text(_HAPROXY.format(gateway=self.gateway, service=self.service, check=check, check_port=port, servers=servers, retries=_RETRIES if self.retry else "  retries 0"))
        self.haproxy = subprocess.Popen(["/usr/sbin/haproxy", "-db", "-f", self.folder / "haproxy.cfg"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(2.5)     # until it has found all of them
        return self

    def __exit__(self, *exc):
        for pod in self.pods.values(): pod.__exit__()
        self.haproxy.kill()
        self.haproxy.wait()

    def address(self, name: str) -> str: return f"{NET}.{11 + self.names.index(name)}"

    def start(self, name: str, *args, log: str = "") -> Pod:
        kind, chart_args = (Naive, []) if self.naive else (Pod, self.chart_args)
        self.pods[name] = kind(self.folder / f"{log or name}.log", *(args or self.args), *chart_args, netns=name, host=self.address(name), ports=PORTS)
        return self.pods[name]

    def await_ready(self, name: str): self.pods[name].wait_ready(90)

    def restart(self, name: str):
        "As a rolling update does it: told to end, killed after the grace period, begun again, ready, and given time to be found"
        pod = self.pods[name]
        pod.process.terminate()
        try: code = pod.process.wait(self.grace)
        except subprocess.TimeoutExpired: pod.process.kill(); code = pod.process.wait()
        if not self.naive: assert code == 0, pod.said()
        pod.__exit__()
        self.start(name)
        self.await_ready(name)
        time.sleep(2)

class Naive(Pod):
    "Plain TorchServe, which SIGTERM meets by itself"
    def __init__(self, log: Path, store: Path, *, netns: str, host: str, ports):
        code = """
import os, sys, tempfile
from pathlib import Path
from zztoolkit.serving.torchserve.config import Settings, format_properties, free_ports, write_server_files
folder, store, host = Path(tempfile.mkdtemp(prefix="zztoolkit-")), Path(sys.argv[1]), sys.argv[2]
plan = write_server_files(folder, format_properties(Settings(), (8000, 8081, 8082, *free_ports(2)), store, inference_address=f"http://{host}:8000", enable_model_api="false",
                                  disable_token_authorization="true", load_models="echo=echo.mar"), echo=True)
command = [str(store) if a == f"{folder}/store" else a for a in plan["command"]]
os.chdir(folder)
os.execve(command[0], command, plan["environment"])
"""
        self.log, self.host, self.ports = log, host, ports
        self.begin(["ip", "netns", "exec", netns, sys.executable, "-c", code, str(store), host], {})

    @property
    def ready(self) -> bool:
        "A prediction works: kinder than /ping, which is healthy before"
        return self.http_ok("/ping") and self.http_ok("/predictions/echo", {"x": 1})

    def http_ok(self, path: str, body=None) -> bool:
        try: return (self.http.post(self.url(0, path), json=body) if body else self.http.get(self.url(0, path))).status_code == 200
        except httpx.HTTPError: return False

class Pressure:
    "Load through both doors at once, and what became of it"
    def __init__(self, cluster: Cluster, token: str = "", rate: float = 20, clients: int = 4):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        target = lambda port: Target(port, "/predictions/echo", headers)
        self.loads = [LoadGenerator(target(cluster.gateway), read_payloads(BODY), open_loop(rate)), LoadGenerator(target(cluster.service), read_payloads(BODY), closed_loop(clients)), LoadGenerator(target(cluster.service), read_payloads(BODY), open_loop(rate / 2))]

    def __enter__(self) -> Pressure:
        for l in self.loads: l.__enter__()
        time.sleep(1)
        return self

    def __exit__(self, *exc):
        time.sleep(2)
        self.sent = [l.responses() for l in self.loads]
        for l in self.loads: l.__exit__()

    def counts(self) -> dict:
        "Requests that were answered, lost (no answer came), failed (an error came) and slow, by door and in all"
        rows = {door: _counts(s) for door, s in zip(("gateway, open loop", "service, keep-alive", "service, open loop"), self.sent)}
        return rows | {"all": {k: sum(r[k] for r in rows.values()) for k in ("requests", "lost", "failed", "slow")} | {"kinds": _merged([r["kinds"] for r in rows.values()])}}

def _counts(s: Responses) -> dict:
    kinds = s.errors
    lost = sum(n for k, n in kinds.items() if k[0].isalpha())
    return {"requests": len(s), "lost": lost, "failed": sum(kinds.values()) - lost, "slow": int((s.latency > SLOW).sum()), "kinds": kinds,
            "p50_ms": round(float(np.median(s.latency)) * 1000, 1), "p99_ms": round(float(np.quantile(s.latency, 0.99)) * 1000, 1), "max_ms": round(float(s.latency.max()) * 1000)}

def _merged(kinds: list[dict]) -> dict:
    return {k: sum(d.get(k, 0) for d in kinds) for k in sorted(set().union(*kinds))}
