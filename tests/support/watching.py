"A real Prometheus, as the chart's ServiceMonitor would have it scrape a pod."
from __future__ import annotations

import http.server, shutil, subprocess, threading, time
from contextlib import suppress
from pathlib import Path

import httpx, yaml

from support.alerts import PODS
from conftest import missing
from zztoolkit.serving.torchserve.config import free_ports

OF = dict(namespace="shop", service="film-zztoolkit-metrics", pod=PODS[0])
EXPORTER = dict(namespace="gpu-operator", pod="dcgm-exporter-1")      # its own labels take the names, and the GPU's pod becomes exported_pod


def serve_text(text: str, folder: Path) -> http.server.ThreadingHTTPServer:
    "`text` at /metrics of a free port"
    (folder / "metrics").write_text(text)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args): super().__init__(*args, directory=str(folder))
        def log_message(self, *_): pass
        def guess_type(self, path): return "text/plain"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server

class Prometheus:
    "It scrapes every second, and evaluates the rules of a file"
    def __init__(self, folder: Path, rules: Path, pod: list[int], cluster: int):
        if not shutil.which("prometheus"): missing("Debian's prometheus is not installed")
        job = lambda name, ports, labels, honor=False: dict(job_name=name, honor_labels=honor, static_configs=[dict(targets=[f"127.0.0.1:{p}" for p in ports], labels=labels)])
        jobs = [job("film", pod, OF), job("kubelet", [cluster], {}, True), job("dcgm-exporter", [cluster], EXPORTER)]
        jobs[1]["metric_relabel_configs"], jobs[2]["metric_relabel_configs"] = ([dict(source_labels=["__name__"], regex=r, action="keep")] for r in ("container_.*|kube_.*", "DCGM_.*"))
        config = dict(**{"global": dict(scrape_interval="1s", evaluation_interval="1s")}, rule_files=[str(rules)], scrape_configs=jobs)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        [port] = free_ports(1)
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "prometheus.log"
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"], stdout=out, stderr=subprocess.STDOUT)

    def wait_ready(self, timeout: float = 30) -> Prometheus:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == 200: return self
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(self.log.read_text()[-2000:])

    def ask(self, path: str, **params: str) -> dict:
        r = httpx.get(f"{self.url}/api/v1/{path}", params=params, trust_env=False, timeout=20)
        assert r.status_code == 200, f"{params}: {r.text}"
        return r.json()["data"]

    def values(self, query: str) -> list[float]:
        "The samples of a query now"
        data = self.ask("query", query=query)
        return [float(s["value"][1]) for s in data["result"]] if data["resultType"] == "vector" else [float(data["result"][1])]

    def wait(self, query: str, timeout: float = 30):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.values(query): return
            time.sleep(0.2)
        raise AssertionError(f"{query} gave nothing in {timeout:.0f} s\n{self.log.read_text()[-2000:]}")

    def __enter__(self) -> Prometheus: return self.wait_ready()

    def __exit__(self, *exc):
        self.process.terminate()
        self.process.wait(20)
