"A pod's life: nothing unchecked is loaded, who may come in, and how it ends."
import json, os, re, shutil, socket, subprocess, sys, tempfile, threading, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx, psutil, pytest

from conftest import missing
from support.pods import ECHO, Pod, echo, swap, wait_until
from zztoolkit.errors import ToolkitError
from zztoolkit.system import sha256
from zztoolkit.deploy.image import dockerfile, entrypoint
from zztoolkit.deploy.work_folder import pod_folder, work_folder
from zztoolkit.folders import OWNER, create_owned_folder, sweep
from zztoolkit.serving.failures import build_error
from zztoolkit.serving.torchserve.config import free_ports
from zztoolkit.archive.signing import new_key, sign
from zztoolkit.samples import sample_photo

OLD, NEW = "old-token-of-the-shop", "new-token-of-the-shop"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    "A store with one signed archive; the key that signed it lies above"
    if not Path("/usr/sbin/haproxy").exists(): missing("no haproxy: apt install haproxy")
    home = tmp_path_factory.mktemp("pods")
    mar = echo(home / "store")
    sign(mar, new_key(home / "release")[0])
    return home / "store"

@pytest.fixture(scope="module")
def guarded(store, tmp_path_factory):
    "A pod that asks for tokens, started with secrets in its environment under names that do not say so"
    home = tmp_path_factory.mktemp("guarded")
    (home / "tokens").write_text(OLD)
    secrets = {"MY_API_KEY": "hush-hush-hush", "SHOP_DB": "hush-hush-hush", "SHOP_LIMIT": "7", "ZZ_ENV": "SHOP_LIMIT"}
    with Pod(home / "log", store, "--tokens", home / "tokens", "--work", home / "work", env=secrets) as pod:
        pod.work = home / "work"
        yield pod.wait_ready()

@pytest.mark.slow
def test_management_has_a_key_that_nobody_else_holds(guarded):
    "No other process on this machine scales a model away or asks TorchServe itself, and no file says the key"
    model = guarded.url(2, "/models/echo")
    scaled = guarded.http.put(model, params=dict(min_worker=0, max_worker=0, synchronous="true"))
    assert (scaled.status_code, guarded.http.get(model).status_code) == (400, 400) and "Token" in scaled.text
    assert guarded.http.post(guarded.url(1, "/predictions/echo"), json={"x": 1}).status_code == 400
    assert guarded.ready and guarded.predict({"x": 1}, OLD).json() == {"x": 1}
    assert not [*guarded.work.rglob("key_file.json")]

def test_no_process_keeps_the_environment_of_the_start(guarded):
    "As /proc shows it, the supervisor's own and haproxy's included; a worker gets what is on the list, and what --env names"
    family = [psutil.Process(guarded.process.pid), *guarded.family()]
    assert {"haproxy", "java"} <= {p.name() for p in family}
    assert not [p.name() for p in family if b"hush" in Path(f"/proc/{p.pid}/environ").read_bytes()]
    names = guarded.predict({"who": True}, OLD).json()["names"]
    assert "SHOP_LIMIT" in names and not {"SHOP_DB", "MY_API_KEY", "ZZ_ENV"} & {*names}

def test_the_names_of_forgotten_variables_are_logged(guarded):
    "In one line, without a value: so that a handler that lacks one is understood"
    line, = [l for l in guarded.said().splitlines() if "environment variables" in l]
    assert {"MY_API_KEY", "SHOP_DB"} <= {*line.split()} and "SHOP_LIMIT" not in line and "hush" not in guarded.said()

def test_no_handler_reaches_the_admin_socket_of_the_front(guarded):
    "A handler runs as the same user: whatever has an address would let it in"
    [haproxy] = [p for p in guarded.family() if p.name() == "haproxy"]
    assert not [c.laddr for c in haproxy.net_connections("unix") if c.laddr]
    assert not [p for p in guarded.work.rglob("*") if p.is_socket() and "haproxy" in ask_info(p)]

def ask_info(path: Path) -> str:
    "What a socket answers to haproxy's `show info`"
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(1)
        try:
            s.connect(str(path))
            s.sendall(b"show info\n")
            return s.recv(1 << 16).decode(errors="replace").lower()
        except OSError: return ""

def test_errors_of_the_probes_are_json(guarded):
    "Whatever the client has sent is quoted"
    with socket.create_connection(("127.0.0.1", guarded.ports[4]), 5) as s:
        s.sendall(b'BR"EW / HTTP/1.0\r\n\r\n')
        head, _, body = b"".join(iter(lambda: s.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    assert b" 501 " in head and json.loads(body)["code"] == 501 and 'BR"EW' in json.loads(body)["message"]

def test_the_first_process_of_an_image_is_started_clean(tmp_path):
    "tini keeps what it was started with for as long as the pod lives"
    assert json.loads(re.search(r"^ENTRYPOINT (.*)$", dockerfile(), re.M)[1]) == ["/bin/sh", "/opt/zztoolkit/entrypoint.sh"]
    shows = "python3 -c 'import os, sys, json; print(json.dumps([sys.argv[1:], dict(os.environ)]))'"
    script = tmp_path / "entrypoint.sh"
    script.write_text(entrypoint().replace("tini -- /opt/zztoolkit/bin/zz run", shows))
    given = {"PATH": os.environ["PATH"], "SHOP_DB": "hush\nA=b", "SHOP_LIMIT": "7", "ZZ_ENV": "OTHER,SHOP_LIMIT", "ZZ_STORE": "/models", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["/bin/sh", script, "--models", "a b"], env=given, capture_output=True, text=True, check=True)
    args, names = json.loads(done.stdout)
    assert args == ["--models", "a b"] and {*given} - {*names} == {"SHOP_DB"}
    assert "SHOP_DB" in done.stderr and "SHOP_LIMIT" not in done.stderr and "hush" not in done.stderr

def test_a_front_that_hangs_is_noticed(guarded):
    [haproxy] = [p for p in guarded.family() if p.name() == "haproxy"]
    state = lambda: [guarded.get(path).status_code for path in ("/livez", "/readyz")]
    assert state() == [200, 200]
    haproxy.suspend()
    try: assert state() == [503, 503]
    finally: haproxy.resume()
    wait_until(lambda: state() == [200, 200], 5)

@pytest.mark.parametrize("given, status", {
    "Bearer": ([f"Bearer {OLD}"], 200), "bearer": ([f"bearer {OLD}"], 200), "Basic": ([f"Basic {OLD}"], 401), "no scheme": ([OLD], 401),
    "more": ([f"Bearer {OLD} {OLD}"], 401), "twice": ([f"Bearer {OLD}"] * 2, 401), "second": (["Bearer wrong", f"Bearer {OLD}"], 401),
}.values())
def test_one_header_of_one_scheme(guarded, given, status):
    headers = [("Authorization", value) for value in given]
    assert guarded.http.post(guarded.url(0, "/predictions/echo"), json={"x": 1}, headers=headers).status_code == status

def test_methods_that_run_no_handler(guarded):
    "Neither by another spelling of the path; and what the front rejects, it says in JSON"
    ask = lambda method, path: guarded.http.request(method, guarded.url(0, path), headers={"Authorization": f"Bearer {OLD}"})
    for path in ("/predictions/echo", "/%70redictions/echo", "/predictions/echo/1.0", "/explanations/echo"):
        assert {m: ask(m, path).status_code for m in ("GET", "HEAD", "DELETE", "PATCH", "OPTIONS", "BREW")} == dict.fromkeys(("GET", "HEAD", "DELETE", "PATCH", "OPTIONS", "BREW"), 405)
    no = ask("DELETE", "/predictions/echo")
    assert no.json()["code"] == 405 and no.headers["allow"] == "POST, PUT"
    assert ask("GET", "/ping").json() == {"status": "Healthy"}
    with socket.create_connection(("127.0.0.1", guarded.ports[0]), 5) as s:
        s.sendall(b"no request\r\n\r\n")
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 400 ")      # haproxy's own page: its configuration reaches only what it could parse

def alive(pid: int) -> bool: return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

def copied(store: Path, to: Path) -> Path: return Path(shutil.copytree(store, to))

def test_a_pod_from_start_to_end(store, tmp_path):
    "Ready when a worker is; tokens that rotate; a closed model API; no secret anywhere; SIGTERM with requests in flight: exit 0"
    tokens = tmp_path / "tokens"
    tokens.write_text(OLD)
    with Pod(tmp_path / "log", store, "--models", "shop=echo.mar", "--keys", store.parent / "release.pub", "--tokens", tokens, "--endpoint-wait", "2", env={"MY_API_KEY": "hush-hush-hush"}) as pod:
        assert not pod.ready
        pod.wait_ready()
        ask = lambda token, **x: pod.predict(x, token, "shop")
        answer = ask(OLD, x=1, who=True).json()
        assert answer["x"] == 1 and pod.get("/livez").status_code == 200
        assert [ask(t).status_code for t in (NEW, "", OLD + "x")] == [401] * 3
        rotated(ask, tokens)
        no_form_is_no_error_of_ours(pod)
        nothing_can_be_registered(pod)
        told = pod.get("/metrics").text
        assert 'zz_ready_workers{model_name="shop",model_version="1.0"} 1' in told and f'digest="{sha256(store / "echo.mar")}",model_name="shop",model_version="1.0",signed_by="release.pub"' in told and 'zz_responses_total{code="5xx"} 0' in told
        every_answer_is_timed(pod)
        assert "ts_inference_requests_total" in pod.get("/metrics", 3).text
        no_secret(pod, answer["names"])
        finishes(pod, ask)
    assert not alive(answer["pid"])

def rotated(ask, tokens: Path):
    "Both count while the file lists both, then the new one alone; nothing fails in between"
    swap(tokens, f"{OLD}\n{NEW}\n")
    wait_until(lambda: ask(NEW, x=1).status_code == 200, 5)
    assert ask(OLD, x=1).status_code == 200
    swap(tokens, NEW)
    wait_until(lambda: ask(OLD, x=1).status_code == 401, 5)
    assert ask(NEW, x=1).status_code == 200

def no_form_is_no_error_of_ours(pod: Pod):
    "A body whose sender calls it a form is the sender's mistake, and no error of the server's"
    of = lambda code: re.search(rf'zz_responses_total{{code="{code}"}} (\S+)', pod.get("/metrics").text)[1]
    before = of("5xx")
    form = pod.http.post(pod.url(0, "/predictions/shop"), content=sample_photo().read_bytes(), headers={"Content-Type": "application/x-www-form-urlencoded", "Authorization": f"Bearer {NEW}"})
    assert (form.status_code, form.json()["code"]) == (415, 415) and "octet-stream" in form.json()["message"] and of("5xx") == before

def nothing_can_be_registered(pod: Pod):
    "Neither by an address of this machine's own (SSRF: nobody is asked), nor by a file; and the front lets nobody near management"
    site = socket.create_server(("127.0.0.1", 0))
    for url in (f"http://127.0.0.1:{site.getsockname()[1]}/evil.mar", "echo.mar", "file:///etc/passwd"):
        assert pod.http.post(pod.url(2, "/models"), params={"url": url}).status_code == 400
        assert pod.http.post(pod.url(0, "/models"), params={"url": url}, headers={"Authorization": f"Bearer {NEW}"}).status_code in (404, 405)
    assert pod.http.delete(pod.url(2, "/models/shop")).status_code == 400
    site.settimeout(1)
    with site, pytest.raises(TimeoutError): site.accept()      # nobody has asked

def every_answer_is_timed(pod: Pod):
    "The histogram has the answers that haproxy counts itself, and only series of what is served"
    pod.predict({}, NEW, "made-up")
    said = lambda: dict(l.rsplit(" ", 1) for l in pod.get("/metrics").text.splitlines() if not l.startswith("#"))
    wait_until(lambda: (m := said())['zz_request_seconds_count{model_name="shop"}'] == m['zz_responses_total{code="2xx"}'] > "0", 5)
    assert "made-up" not in str(said())

def no_secret(pod: Pod, names: list[str]):
    "In no worker's environment, on no command line, in no log, in no file of the server's own folder"
    assert "MY_API_KEY" not in names and "ZZ_TOKENS" not in names
    family = pod.family()
    lines = " ".join(" ".join(p.cmdline()) for p in family)
    folder = Path(re.search(r"-Djava.io.tmpdir=(\S+)/tmp", lines)[1])
    assert folder.stat().st_mode & 0o077 == 0
    files = "".join(f.read_text(errors="replace") for f in folder.rglob("*") if f.is_file())
    for secret in (OLD, NEW, "hush-hush-hush"): assert secret not in lines + pod.said() + files
    assert all("hush-hush-hush" not in p.environ().values() for p in family)

def finishes(pod: Pod, ask):
    "SIGTERM: not ready, but whoever comes is served; clients with an open connection are told to come back by another; what is in flight is answered"
    with ThreadPoolExecutor(3) as pool:
        long = [pool.submit(ask, NEW, sleep=1.5) for _ in range(3)]     # one at work, two in the queue: the last is answered after 4.5 s
        wait_until(lambda: "zz_requests_in_flight 3" in pod.get("/metrics").text)
        pod.process.terminate()
        wait_until(lambda: pod.get("/readyz").status_code == 503, 2)
        assert "zz_draining 1" in pod.get("/metrics").text and pod.get("/livez").status_code == 200
        late = pod.http.post(pod.url(0, "/predictions/shop"), json={"x": 2}, headers={"Authorization": "Bearer wrong"})
        assert late.status_code == 401 and pod.process.poll() is None
        assert [r.result().status_code for r in long] == [200] * 3
    assert pod.process.wait(20) == 0 and "every request was answered" in pod.said()

def refusal(store: Path, tmp_path: Path, *args) -> str:
    "The words with which a pod refuses to start; Java was never begun"
    with Pod(tmp_path / "log", store, *args) as pod:
        assert pod.process.wait(30) == 1
        assert "Model server started" not in pod.said() and "Traceback" not in pod.said()
        return pod.said()

@pytest.mark.slow
def test_a_taken_port_is_named_at_once(store, tmp_path):
    for wrong in ((8000, 8080, 8081, 8082, 8082), (70000, 8080, 8081, 8082, 8083)):
        with Pod(tmp_path / "log", store, ports=wrong) as pod: assert pod.process.wait(20) == 1 and "five different numbers" in pod.said() and "Traceback" not in pod.said()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = free_ports(4)
        for place, name in enumerate(("front", "inference", "management", "metrics", "probes")):
            with Pod(tmp_path / "log", store, ports=[*free[:place], taken.getsockname()[1], *free[place:]]) as pod: assert pod.process.wait(20) == 1
            assert f"({name}) is already in use" in pod.said().splitlines()[-3] and "java" not in pod.said()

def test_a_work_folder_whose_path_is_too_long(store, tmp_path):
    "Sockets stand in it, and the kernel allows their paths 107 bytes"
    said = refusal(store, tmp_path, "--work", tmp_path / ("w" * 100))
    assert "the path of the work folder is too long" in said and "--work" in said and "java" not in said and "haproxy" not in said
    assert not [*tmp_path.glob("w*")]

@pytest.mark.slow
def test_a_wrong_token_in_a_notebook_is_401(serve_source):
    "TorchServe says 400: its InvalidKeyException is one of the errors that it calls a bad request"
    endpoint = serve_source("guarded", ECHO)
    raw = endpoint.post(b"{}", "application/json", Authorization="Bearer wrong")
    error = build_error(raw, endpoint)
    assert raw.status_code == 400 and error.status == 401 and "token is wrong" in str(error)

MAKE = "import sys, time; from zztoolkit.folders import create_owned_folder; print(create_owned_folder(sys.argv[1]), flush=True); time.sleep(60)"

def made_by_another(prefix: str, tmp: Path) -> tuple[subprocess.Popen, Path]:
    "A process that has made itself a folder in `tmp`"
    other = subprocess.Popen([sys.executable, "-c", MAKE, prefix], stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp)})
    assert other.stdout and (said := other.stdout.readline().strip()), "it has made none"      # an empty path is this folder
    return other, Path(said)

def test_what_a_killed_process_has_left_is_swept(tmp_path, monkeypatch):
    "And nothing else: not a living one's, not another user's, nothing behind a link, nothing that does not say whose it is"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, left = made_by_another("zz-serve-", tmp_path)
    alive_, kept = made_by_another("zztoolkit-", tmp_path)
    stranger = copied(left, tmp_path / "zz-serve-stranger")
    if os.getuid() == 0: os.chown(stranger, 12345, 12345)
    else: shutil.rmtree(stranger)
    elsewhere = copied(left, tmp_path / "elsewhere")
    (tmp_path / "zz-serve-link").symlink_to(elsewhere)
    (tmp_path / "zz-serve-nobody").mkdir()
    (left / "out").symlink_to(elsewhere)
    dead.kill(), dead.wait()
    create_owned_folder("zz-serve-")
    assert not left.exists() and (elsewhere / OWNER).exists() and (tmp_path / "zz-serve-link").is_symlink()
    assert kept.exists() and (tmp_path / "zz-serve-nobody").exists() and stranger.exists() == (os.getuid() == 0)
    alive_.kill(), alive_.wait()

def test_a_recycled_process_id_is_another_process(tmp_path, monkeypatch):
    "The id of one that lives, with another start: its folder goes"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = create_owned_folder("zz-serve-")
    claim = json.loads((folder / OWNER).read_text())
    (folder / OWNER).write_text(json.dumps(claim | {"started": claim["started"] - 1}) + "\n")
    sweep()
    assert not folder.exists()

@pytest.mark.slow
def test_the_folder_of_a_killed_pod_is_swept(store, tmp_path):
    with Pod(tmp_path / "log", store) as pod:
        folders = lambda: [*pod.tmp.glob("zztoolkit-*")]
        wait_until(lambda: [*pod.tmp.glob("zztoolkit-*/store/echo.mar")], 10)
        pod.process.kill(), pod.process.wait()
        assert folders()
        next_ = subprocess.run([str(Path(sys.executable).with_name("zz")), "run", store, "--models", "absent.mar", "--ports", ",".join(map(str, free_ports(5)))], capture_output=True, text=True, env=os.environ | {"TMPDIR": str(pod.tmp)})
        assert next_.returncode == 1 and "no archive at" in next_.stdout + next_.stderr
        assert not folders()

def test_two_pods_do_not_share_a_work_folder(guarded, store, tmp_path):
    "The second says whose it is, and takes nothing from the first"
    said = refusal(store, tmp_path, "--work", guarded.work)
    assert f"process {guarded.process.pid}" in said and guarded.predict({"x": 1}, OLD).status_code == 200

def test_of_starts_at_once_one_has_the_work_folder(tmp_path):
    "And the others say so, whichever was first"
    together = threading.Barrier(8)
    def begin(_) -> bool:
        together.wait()
        try:
            with pod_folder(tmp_path / "work"):
                time.sleep(0.3)
                return True
        except ToolkitError as e: return "is in use" not in str(e)
    with ThreadPoolExecutor(8) as pool: assert sum(pool.map(begin, range(8))) == 1
    with pod_folder(tmp_path / "work"): pass      # free again

def test_a_work_folder_of_another_machine_is_left_alone(tmp_path):
    "On a volume that machines share; what an earlier container or an earlier start of this machine left is not"
    left = tmp_path / "server"
    def begin(**claim) -> bool:
        shutil.rmtree(left, ignore_errors=True)
        with work_folder(tmp_path): said = json.loads((left / OWNER).read_text())
        (left / OWNER).write_text(json.dumps(said | claim) + "\n")
        (left / "left").touch()
        with work_folder(tmp_path): return (left / "left").exists()
    gone = psutil.pids()[-1] + 10_000
    assert not begin(pid=gone) and not begin(namespace="pid:[1]") and not begin(boot="before")
    with pytest.raises(ToolkitError, match="belongs to another machine\n.*of node-7"): begin(boot="another", host="node-7")
    assert (left / "left").exists()

@pytest.mark.slow
def test_tampered_archives_are_refused(store, tmp_path):
    "With the digest left, with the digest changed too, and with a stranger's signature"
    key, changed = store.parent / "release.pub", copied(store, tmp_path / "changed")
    with zipfile.ZipFile(changed / "echo.mar", "a") as z: z.writestr("backdoor.py", "import os")
    assert "echo.mar is not the archive that was packed" in refusal(changed, tmp_path)
    (changed / "echo.mar.sha256").write_text(sha256(changed / "echo.mar"))
    assert "echo.mar is not the archive that was signed" in refusal(changed, tmp_path, "--keys", key)
    sign(changed / "echo.mar", new_key(tmp_path / "stranger")[0])
    assert "signed with an untrusted key" in refusal(changed, tmp_path, "--keys", key)

@pytest.mark.slow
def test_a_version_that_does_not_load(tmp_path):
    "The pod ends, and its last words are the handler's own traceback"
    if not Path("/usr/sbin/haproxy").exists(): missing("no haproxy: apt install haproxy")
    echo(tmp_path / "store", source=ECHO + "    def initialize(self, context):\n        if '/models/' in os.getcwd(): raise KeyError('labels')\n        super().initialize(context)\n")
    with Pod(tmp_path / "log", tmp_path / "store") as pod: assert pod.process.wait(40) == 1
    said = pod.said()
    assert "echo version 1.0 does not load" in said and "KeyError: 'labels'" in said.partition("does not load")[2] and "in initialize" in said

@pytest.mark.slow
def test_java_that_dies_and_drain_without_a_front(store, tmp_path):
    "No front: TorchServe answers by itself, and its own queue says when nothing is in flight. kill -9 of Java ends the pod with 1"
    config = tmp_path / "run.yaml"
    config.write_text("front: false\ntoken_auth: false\nendpoint_wait: 0\nmodels: [echo.mar]\n")
    with Pod(tmp_path / "log", store, "--config", config) as pod, Pod(tmp_path / "second", store, "--config", config) as second:
        pod.wait_ready()
        second.wait_ready().java().kill()
        ask = lambda **x: pod.http.post(pod.url(1, "/predictions/echo"), json=x).status_code
        with ThreadPoolExecutor(2) as pool:
            long = [pool.submit(ask, sleep=1) for _ in range(2)]
            time.sleep(0.3)
            pod.process.terminate()
            assert [r.result() for r in long] == [200, 200]
        assert pod.process.wait(20) == 0
        assert second.process.wait(10) == 1 and "TorchServe ended by itself\nexit code -9" in second.said()

# Another server in the pod: the same from outside.

SECRETS = {"MY_API_KEY": "hush-hush-hush", "SHOP_TOKEN": "7", "ZZ_ENV": "SHOP_TOKEN"}

@pytest.fixture(scope="module", params=["mosec"])
def other(request, store, tmp_path_factory):
    "A pod with another server, the gateway and tokens, started with secrets in its environment"
    home = tmp_path_factory.mktemp(request.param)
    (home / "tokens").write_text(OLD)
    args = ("--server", request.param, "--models", "shop=echo.mar", "--keys", store.parent / "release.pub", "--tokens", home / "tokens", "--gateway", "--endpoint-wait", "1")
    with Pod(home / "log", store, *args, env=SECRETS) as pod: yield pod.wait_ready()

@pytest.mark.slow
def test_another_server_predicts_and_rejects(other):
    "Under the name it is given, with the right token alone; not without the proxy; and of no other model"
    ask = lambda token, name="shop": other.predict({"x": 1}, token, name)
    assert ask(OLD).json() == {"x": 1} and [ask(t).status_code for t in (NEW, "")] == [401] * 2
    assert ask(OLD, "absent").status_code == 404
    inside = other.http.post(other.url(1, "/predictions/shop"), json={"x": 1})
    assert inside.status_code == 400 and "Token" in inside.text
    assert not [p for p in other.family() if "java" in p.name()] and other.get("/livez").status_code == 200

def test_another_server_behind_the_gateway(other):
    text = {"name": "request", "datatype": "BYTES", "shape": [1], "data": ['{"x": 1}']}
    ask = lambda token: other.http.post(other.url(0, "/v2/models/shop/infer"), json={"inputs": [text]}, headers={"Authorization": f"Bearer {token}"})
    assert json.loads(ask(OLD).json()["outputs"][0]["data"][0]) == {"x": 1} and ask(NEW).status_code == 401

def test_another_server_keeps_secrets(other):
    "Handlers see the variables that are named, though the name looks like a secret; no file says a key, no process shows one"
    names = other.predict({"who": True}, OLD, "shop").json()["names"]
    assert "SHOP_TOKEN" in names and not {"MY_API_KEY", "ZZ_ENV", "ZZ_TOKENS"} & {*names}
    family = [psutil.Process(other.process.pid), *other.family()]
    assert not [p.name() for p in family if b"hush" in Path(f"/proc/{p.pid}/environ").read_bytes()]
    assert "hush" not in other.said() and not [*other.tmp.rglob("token")]
    files = [f for f in other.tmp.rglob("*") if f.is_file()]
    assert files and not [f for f in files if OLD in f.read_text(errors="replace")]

def test_another_server_counts_under_the_same_names(other):
    "What alerts and the dashboard ask for, on both ports; and the handler's own stages, under the name that it is served by"
    other.predict({"x": 1}, OLD, "shop")
    own, server = other.get("/metrics").text, lambda: other.get("/metrics", 3).text
    assert 'zz_ready_workers{model_name="shop",model_version="1.0"} 1' in own and 'zz_wanted_workers{model_name="shop",model_version="1.0"} 1' in own
    assert re.search(r'zz_request_seconds_count\{model_name="shop"\} [1-9]', own) and 'signed_by="release.pub"' in own
    for name in ("ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds"):
        assert f'{name}{{model_name="shop",model_version="1.0"}}' in server()
    assert re.search(r'zz_stage_seconds_count\{model_name="shop",stage="inference"\} [1-9]', server())
    before = float(re.search(r'ts_inference_requests_total\{model_name="shop",.*\} (\S+)', server())[1])
    other.predict({"x": 1}, OLD, "shop")
    assert float(re.search(r'ts_inference_requests_total\{model_name="shop",.*\} (\S+)', server())[1]) == before + 1

def test_another_server_whose_worker_dies(other):
    "It is replaced, and its end is counted"
    [worker] = other.workers()
    worker.kill()
    wait_until(lambda: 'zz_worker_exits_total{code="137"} 1' in other.get("/metrics").text)
    assert other.predict({"x": 1}, OLD, "shop").json() == {"x": 1}      # it waits for the next worker
    wait_until(lambda: other.ready and "exit code 137" in other.said())

@pytest.mark.slow
def test_another_server_drains(other):
    "Last, since it ends the pod. SIGTERM under load: every request is answered, whoever still comes is served, exit 0"
    statuses, over = [], threading.Event()
    def press():
        with httpx.Client(trust_env=False, timeout=30) as http:
            while not over.is_set(): statuses.append(http.post(other.url(0, "/predictions/shop"), json={"sleep": 0.01}, headers={"Authorization": f"Bearer {OLD}"}).status_code)
    clients = [threading.Thread(target=press) for _ in range(4)]
    for c in clients: c.start()
    wait_until(lambda: len(statuses) > 20)
    with ThreadPoolExecutor(2) as pool:
        long = [pool.submit(other.predict, {"sleep": 1}, OLD, "shop") for _ in range(2)]
        wait_until(lambda: int(re.search(r"zz_requests_in_flight (\d+)", other.get("/metrics").text)[1]) >= 2)
        other.process.terminate()
        wait_until(lambda: other.get("/readyz").status_code == 503, 2)
        time.sleep(0.5)         # the endpoints look away
        over.set()
        for c in clients: c.join()
        assert [r.result().status_code for r in long] == [200, 200]
    assert {*statuses} == {200} and other.process.wait(30) == 0 and "every request was answered" in other.said()
    assert not [*other.tmp.glob("zztoolkit-*")]

@pytest.mark.slow
def test_another_server_refuses_a_broken_archive(tmp_path):
    "The pod ends, and its last words are the handler's own traceback"
    if not Path("/usr/sbin/haproxy").exists(): missing("no haproxy: apt install haproxy")
    echo(tmp_path / "store", source=ECHO + "    def initialize(self, context):\n        if '/models/' in os.getcwd(): raise KeyError('labels')\n        super().initialize(context)\n")
    with Pod(tmp_path / "log", tmp_path / "store", "--server", "mosec") as pod: assert pod.process.wait(60) == 1
    last = pod.said().rpartition("does not load")[2]
    assert "echo version 1.0 does not load" in pod.said() and "KeyError: 'labels'" in last and "still serves" not in last
