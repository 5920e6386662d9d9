"""What is promised under fault, counted: three replicas in network namespaces behind haproxy, requests at a rate and over kept connections.

`make faults` runs it, as root, in some minutes; `make faults SERVER=mosec` with another server. It needs Debian's haproxy and iproute2.
"""
import json, os, sys, tempfile, time
from contextlib import ExitStack
from pathlib import Path

import httpx, psutil, pytest

from support.cluster import NET, Cluster, Pressure, network, sh
from conftest import missing
from support.pods import ECHO, SERVER, echo, swap, wait_until

pytestmark = pytest.mark.faults
OLD, NEW = "old-token-of-the-shop", "new-token-of-the-shop"
ROWS: dict[str, dict] = {}


@pytest.fixture(scope="module", autouse=True)
def told(request):
    "The table at the end, and the record"
    if os.geteuid() or not Path("/usr/sbin/haproxy").exists(): missing("faults need root and haproxy (apt install haproxy iproute2)")
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled(): print("\n" + table(ROWS))
    if to := request.config.getoption("--record"):
        before = json.loads(Path(to).read_text()) if Path(to).exists() else {}
        Path(to).write_text(json.dumps(before | ROWS, indent=1) + "\n")

def table(rows: dict) -> str:
    lines = [f"{'fault':<46}{'requests':>9}{'lost':>6}{'failed':>8}{'slow':>6}  kinds"]
    for what, r in rows.items(): lines.append(f"{what:<46}{r['all']['requests']:>9}{r['all']['lost']:>6}{r['all']['failed']:>8}{r['all']['slow']:>6}  {r['all']['kinds'] or ''}")
    return "\n".join(lines)

def note(what: str, p: Pressure) -> dict:
    ROWS[what] = p.counts()
    return ROWS[what]["all"]

@pytest.fixture(scope="module")
def names():
    with network(4) as names: yield names

@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("faults")
    echo(home / "store", batchSize=4, maxBatchDelay=5)
    return home / "store"

def pods(tmp_path, names, store, *args, **kw) -> Cluster: return Cluster(tmp_path / "pods", names, store, "--no-token-auth", *args, **kw)

def test_naive_rolling_restart_loses_requests(tmp_path, names, store):
    "The test can fail: plain TorchServe, told to end, drops what it holds"
    if SERVER != "torchserve": pytest.skip("of TorchServe")
    with Cluster(tmp_path / "naive", names, store, naive=True) as c:
        with Pressure(c) as p:
            for name in names[:3]: c.restart(name)
        all_ = note("rolling restart, plain TorchServe", p)
    assert all_["lost"] + all_["failed"] > 0

def test_rolling_restart(tmp_path, names, store):
    "Nobody notices, without a single retry by the gateway"
    with pods(tmp_path, names, store) as c:
        with Pressure(c) as p:
            for name in names[:3]: c.restart(name)
        all_ = note("rolling restart", p)
    assert all_["requests"] > 1000 and all_["lost"] == all_["failed"] == 0, all_

def test_token_rotation(tmp_path, names, store):
    "Old, then both, then the new one alone: clients change in between, and nobody is turned away"
    tokens = tmp_path / "tokens"
    tokens.write_text(OLD)
    with Cluster(tmp_path / "pods", names, store, "--tokens", tokens) as c:
        ask = lambda token: {httpx.post(f"http://{c.address(n)}:8000/predictions/echo", json={"x": 1}, headers={"Authorization": f"Bearer {token}"}).status_code for n in names[:3]}
        with ExitStack() as later:
            with Pressure(c, OLD, rate=10, clients=2) as first:
                swap(tokens, f"{OLD}\n{NEW}\n")
                wait_until(lambda: ask(NEW) == {200}, 5)
                second = later.enter_context(Pressure(c, NEW, rate=10, clients=2))
                time.sleep(3)
            swap(tokens, NEW)
            wait_until(lambda: ask(OLD) == {401}, 5)
            time.sleep(3)
        a, b = note("token rotation: clients of the old token", first), note("token rotation: clients of the new token", second)
    assert a["requests"] > 100 and b["requests"] > 100 and not any(x[k] for x in (a, b) for k in ("lost", "failed"))

def test_kill_of_a_worker(tmp_path, names, store):
    "kill -9: the requests that it held, and no others; a gateway that may send them again loses none"
    with pods(tmp_path, names, store, retry=True) as c:
        with Pressure(c) as p:
            time.sleep(2)
            [worker] = c.pods["zz1"].workers()
            worker.kill()
            time.sleep(3)
            wait_until(lambda: c.pods["zz1"].ready, 60)
            time.sleep(3)
        all_ = note("kill -9 of a worker", p)
        assert "exit code 137" in c.pods["zz1"].said() and 'zz_worker_exits_total{code="137"} 1' in c.pods["zz1"].get("/metrics").text
    gateway = ROWS["kill -9 of a worker"]["gateway, open loop"]
    assert gateway["lost"] == gateway["failed"] == all_["lost"] == 0 and all_["failed"] <= 4, all_      # a batch is four

def test_kill_of_a_replica(tmp_path, names, store):
    "kill -9 of the pod's first process: everything of it is gone at once; the gateway sends again what it held"
    with pods(tmp_path, names, store, retry=True) as c:
        with Pressure(c) as p:
            time.sleep(2)
            family = c.pods["zz1"].family()
            c.pods["zz1"].process.kill()
            c.pods["zz1"].process.wait()
            assert not psutil.wait_procs(family, 10)[1]
            time.sleep(3)
            c.start("zz1")
            c.await_ready("zz1")
            time.sleep(3)
        note("kill -9 of a replica", p)
    gateway = ROWS["kill -9 of a replica"]["gateway, open loop"]
    assert gateway["lost"] == gateway["failed"] == 0

def test_a_broken_version(tmp_path, names, store):
    "A surge pod of the new version ends with its traceback, the old ones serve, nobody notices"
    echo(tmp_path / "broken", source=ECHO + "    def initialize(self, context):\n        if '/models/' in os.getcwd(): raise KeyError('labels')\n        super().initialize(context)\n", version="2.0")
    with pods(tmp_path, names, store) as c:
        with Pressure(c) as p:
            pod = c.start("zz4", tmp_path / "broken", "--no-token-auth", log="broken")
            assert pod.process.wait(60) == 1 and "KeyError: 'labels'" in pod.said()
            time.sleep(2)
        all_ = note("a broken version is pushed", p)
    assert all_["lost"] == all_["failed"] == 0

def test_a_full_disk(tmp_path, names, store):
    "Nothing more can be written where the logs are: requests do not care, whose handler prints, and the drain does not either"
    echo(tmp_path / "printing", source=ECHO.replace("        return xs\n", "        print('x' * 300)\n        return xs\n"), batchSize=4, maxBatchDelay=5)
    work = Path(tempfile.mkdtemp(prefix="z"))        # sockets need a short path; with a longer one, Ray's files are elsewhere
    sh("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(work))
    try:
        with pods(tmp_path, names, store) as c:
            c.pods["zz1"].process.terminate()
            assert c.pods["zz1"].process.wait(c.grace) == 0
            c.pods["zz1"].__exit__()
            c.start("zz1", tmp_path / "printing", "--no-token-auth", "--work", work)
            c.await_ready("zz1")
            time.sleep(2)
            with Pressure(c) as p:
                sh("dd", "if=/dev/zero", f"of={work}/filler", "bs=64k", check=False)
                assert os.statvfs(work).f_bavail == 0
                time.sleep(6)
                c.pods["zz1"].process.terminate()
                assert c.pods["zz1"].process.wait(c.grace) == 0, c.pods["zz1"].said()
            all_ = note("a full disk, then a drain", p)
        assert all_["lost"] == all_["failed"] == 0
    finally:
        sh("umount", str(work))
        work.rmdir()

def test_doors_between_pods(tmp_path, names, store):
    "From another network namespace: the front, metrics and probes answer; the server's inference and management do not"
    code = "import socket, sys\nfor p in (8000, 8080, 8081, 8082, 8083, 7070, 7071):\n    s = socket.socket(); s.settimeout(2)\n    print(p, s.connect_ex((sys.argv[1], p)) == 0)"
    with pods(tmp_path, names, store):
        said = sh("ip", "netns", "exec", "zz2", sys.executable, "-c", code, f"{NET}.11")
        inside = sh("ip", "netns", "exec", "zz1", sys.executable, "-c", code, "127.0.0.1")
    assert [l.split()[0] for l in said.splitlines() if l.endswith("True")] == ["8000", "8082", "8083"]
    assert "8080 True" in inside and ("8081 True" in inside) == (SERVER == "torchserve")
