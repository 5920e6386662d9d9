"""The image, run as a cluster would: as 10001, on a read-only root, without capabilities. `make image` builds it and runs this, `make image SERVER=mosec` another server's.

Needs Debian's podman and runc, and root.
"""
import json, os, shutil, subprocess, tempfile, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx, pytest

from conftest import missing
from support.pods import SERVER, echo, wait_until
from zztoolkit.system import sha256
from zztoolkit.serving.torchserve.config import free_ports
from zztoolkit.archive.signing import new_key, sign

pytestmark = pytest.mark.image
IMAGE, TOKEN = os.environ.get("IMAGE", "localhost/zztoolkit:test"), "a-token-of-the-shop"


def podman(*args, check: bool = True) -> str:
    done = subprocess.run(["podman", *map(str, args)], capture_output=True, text=True)
    if check and done.returncode: raise AssertionError(f"podman {args[0]}: {done.stderr}")
    return done.stdout + done.stderr

@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "An archive that is signed, the key, a file of tokens: readable for 10001, which is nobody here"
    if not shutil.which("podman") or subprocess.run(["podman", "image", "exists", IMAGE]).returncode: missing(f"no image {IMAGE}: make image")
    home = tmp_path_factory.mktemp("image")
    sign(echo(home / "store"), new_key(home / "release")[0])
    (home / "keys").mkdir()
    shutil.copy(home / "release.pub", home / "keys")
    (home / "tokens").write_text(TOKEN)
    for p in (home, *home.parents):
        if p.stat().st_uid == os.getuid() and str(p).startswith("/tmp/"): p.chmod(p.stat().st_mode | 0o055)
    return home

class Container:
    "The image as the chart runs it"
    def __init__(self, home: Path, store: Path | None = None, *args):
        [self.front, self.probes], self.writable = free_ports(2), Path(tempfile.mkdtemp())
        self.writable.chmod(0o755)
        for empty_dir in ("work", "tmp"): (self.writable / empty_dir).mkdir()
        for empty_dir in self.writable.iterdir(): empty_dir.chmod(0o777)
        self.id = podman("run", "-d", "--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host", "--stop-timeout", "60",
            "-v", f"{self.writable}/work:/work", "-v", f"{self.writable}/tmp:/tmp", "-v", f"{store or home / 'store'}:/models:ro", "-v", f"{home}/keys:/etc/zztoolkit/keys:ro", "-v", f"{home}/tokens:/etc/zztoolkit/tokens/tokens:ro",
            "-e", "ZZ_KEYS=/etc/zztoolkit/keys", "-e", "ZZ_TOKENS=/etc/zztoolkit/tokens/tokens", "-e", "ZZ_HOST=127.0.0.1", "-e", f"ZZ_PORTS={self.front},{','.join(map(str, free_ports(3)))},{self.probes}",
            "-e", "ZZ_ENDPOINT_WAIT=2", *args, IMAGE).strip()

    def __enter__(self): return self
    def __exit__(self, *exc):
        podman("rm", "-f", "-t", "0", self.id)
        shutil.rmtree(self.writable)
    def logs(self) -> str: return podman("logs", self.id)
    def state(self) -> dict: return json.loads(podman("inspect", self.id))[0]["State"]

    @property
    def ready(self) -> bool:
        try: return httpx.get(f"http://127.0.0.1:{self.probes}/readyz", trust_env=False).status_code == 200
        except httpx.HTTPError: return False

    def predict(self, **x) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{self.front}/predictions/echo", json=x, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=60)

def test_predicts_and_stops(home):
    "10001 without a capability on a root that cannot be written predicts; `podman stop` lets what is in flight finish: exit 0"
    with Container(home) as c:
        wait_until(lambda: c.ready or not c.state()["Running"], 60)
        assert c.ready, c.logs()
        assert c.predict(x=1).json() == {"x": 1}
        status = dict(l.split(":\t", 1) for l in podman("exec", c.id, "cat", "/proc/1/status").splitlines() if ":\t" in l)
        assert status["Uid"].split() == ["10001"] * 4 and status["CapEff"] == status["CapBnd"] == "0" * 16 and status["NoNewPrivs"] == "1"
        for place in ("/x", "/models/x", "/opt/zztoolkit/x", "/etc/x"): assert "Read-only file system" in podman("exec", c.id, "touch", place, check=False)
        assert not podman("exec", c.id, "sh", "-c", "find / -xdev -perm /6000 -type f 2>/dev/null; true").strip()
        podman("exec", c.id, "sh", "-c", "sh -c 'sleep 0.3 & exec true' & sleep 0.1")     # leaves an orphan, which PID 1 has to bury
        time.sleep(1.5)
        assert "Z" not in podman("exec", c.id, "sh", "-c", "for p in /proc/[0-9]*; do sed -n 's/^State:\\t\\(.\\).*/\\1/p' $p/status; done")
        assert TOKEN not in c.logs() + podman("top", c.id, "args")
        with ThreadPoolExecutor(2) as pool:
            long = [pool.submit(c.predict, sleep=2) for _ in range(2)]
            time.sleep(0.5)
            podman("stop", c.id)
            assert [r.result().status_code for r in long] == [200, 200]
        assert c.state()["ExitCode"] == 0 and "every request was answered" in c.logs()

def test_java_is_there_where_it_is_needed(home):
    "And TorchServe's frontend, which runs on it; `ts` itself loads handlers for every server"
    look = "command -v java; ls /opt/zztoolkit/lib/python*/site-packages/ts/frontend/model-server.jar; ls /opt/zztoolkit/lib/python*/site-packages/ts/service.py; echo server $ZZ_SERVER"
    said = podman("run", "--rm", "--entrypoint", "sh", IMAGE, "-c", look, check=False)
    has_java = SERVER == "torchserve"
    assert f"server {SERVER}" in said and "ts/service.py\n" in said
    assert [("bin/java\n" in said), ("No such file" not in said)] == [has_java] * 2, said

def test_told_to_stop_while_it_starts(home):
    "SIGTERM before Python has loaded anything: it ends at once, not at the end of the grace period"
    with Container(home) as c:
        begun = time.monotonic()
        podman("stop", c.id)
        assert time.monotonic() - begun < 20 and c.state()["ExitCode"] in (0, 143), c.logs()

def test_tampered_archive_is_refused(home, tmp_path):
    tmp_path.chmod(0o755)
    store = Path(shutil.copytree(home / "store", tmp_path / "store"))
    with zipfile.ZipFile(store / "echo.mar", "a") as z: z.writestr("backdoor.py", "import os")
    (store / "echo.mar.sha256").write_text(sha256(store / "echo.mar"))
    with Container(home, store) as c:
        wait_until(lambda: not c.state()["Running"], 30)
        assert c.state()["ExitCode"] == 1 and "echo.mar is not the archive that was signed" in c.logs() and "Model server started" not in c.logs()
