"`zz run` as the tests meet it: on this machine, or each in a network namespace of its own."
from __future__ import annotations

import os, shutil, subprocess, sys, tempfile, textwrap, time
from pathlib import Path

import httpx, psutil

from zztoolkit.archive.mar import Mar
from zztoolkit.archive.packing import pack
from zztoolkit.serving.torchserve.config import free_ports

SERVER = os.environ.get("SERVER", "torchserve")     # that the pods of some suites run: make faults SERVER=mosec

ECHO = """
import os, time
from zztoolkit import Handler

class Echo(Handler):
    "Says what it was told, and who it is"
    def preprocess(self, requests): return list(requests)
    def inference(self, xs):
        time.sleep(max(x.get("sleep", 0) for x in xs))
        return xs
    def postprocess(self, xs): return [{**x, "pid": os.getpid(), "names": sorted(os.environ)} if x.get("who") else x for x in xs]
"""

def echo(store: Path, name: str = "echo", source: str = ECHO, version: str = "1.0", **config) -> Mar:
    "An archive whose handler costs nothing"
    store.mkdir(parents=True, exist_ok=True)
    file = store.parent / f"{name}.py"
    file.write_text(textwrap.dedent(source))
    return pack(name, file, store=store, version=version, example={"x": 1}, **config)

def wait_until(condition, timeout: float = 30):
    end = time.monotonic() + timeout
    while not (is_met := condition()) and time.monotonic() < end: time.sleep(0.05)
    assert is_met

def swap(file: Path, text: str):
    "Replace a file at once, as kubelet replaces a Secret: nobody reads half of it"
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)

class Pod:
    "One `zz run`; `netns` is the network namespace it lives in, `host` where it is reached"
    def __init__(self, log: Path, *args, netns: str = "", host: str = "127.0.0.1", ports=None, env: dict | None = None):
        self.log, self.host, self.ports = log, host, ports or free_ports(5)
        command = [str(Path(sys.executable).with_name("zz")), "run", *map(str, args), "--ports", ",".join(map(str, self.ports)), "--host", host]
        inside = ["ip", "netns", "exec", netns] if netns else []
        self.begin([*inside, *command], env or {})

    def begin(self, command: list[str], env: dict[str, str]):
        "Its temporary files go with it, even if it is killed"
        self.tmp, self.http = Path(tempfile.mkdtemp(prefix="zz-")), httpx.Client(trust_env=False, timeout=30)
        with open(self.log, "ab") as out: self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"TMPDIR": str(self.tmp)} | env)

    def url(self, port: int, path: str = "") -> str: return f"http://{self.host}:{self.ports[port]}{path}"

    def get(self, path: str, port: int = 4) -> httpx.Response:
        try: return self.http.get(self.url(port, path))
        except httpx.HTTPError as e: return httpx.Response(599, text=repr(e))

    def predict(self, body: dict, token: str = "", name: str = "echo", **kw) -> httpx.Response:
        return self.http.post(self.url(0, f"/predictions/{name}"), json=body, headers={"Authorization": f"Bearer {token}"} if token else {}, **kw)

    @property
    def ready(self) -> bool: return self.get("/readyz").status_code == 200

    def wait_ready(self, timeout: float = 60) -> Pod:
        wait_until(lambda: self.ready or self.process.poll() is not None, timeout)
        assert self.process.poll() is None, self.said()
        return self

    def said(self) -> str: return self.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]: return psutil.Process(self.process.pid).children(recursive=True)

    def java(self) -> psutil.Process: return next(p for p in self.family() if "java" in p.name())

    def workers(self) -> list[psutil.Process]:
        "TorchServe's name themselves; mosec's are forked by guards, and those by one supervisor; Ray's change their title with each request, and run below a shell script"
        family = self.family()
        forked = {p.pid: p.ppid() for p in family if any("mosec.process" in a for a in p.cmdline())}
        of_mosec = {pid for pid, guard in forked.items() if forked.get(guard) in forked}
        scripts = {p.pid for p in family if p.cmdline()[:1] == ["/bin/sh"] and p.cmdline()[1].endswith("/worker")}
        of_ray = {p.pid for p in family if p.ppid() in scripts} - scripts
        return [p for p in family if p.pid in of_mosec | of_ray or any("model_service_worker" in a for a in p.cmdline()) and "python" in p.exe()]

    def __enter__(self) -> Pod: return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            family = self.family()
            self.process.kill()
            self.process.wait()
            for p in psutil.wait_procs(family, 10)[1]: p.kill()
        self.http.close()
        shutil.rmtree(self.tmp, ignore_errors=True)
