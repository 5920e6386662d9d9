"A language model under load: what is measured, what bounds it, and what goes wrong"
from __future__ import annotations

import json, random, shutil, subprocess, sys, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil, pytest

from support.llms import is_idle
from support.pods import wait_until
from zztoolkit.cli.measuring import _find_endpoint, _find_running
from zztoolkit.display import png_of
from zztoolkit.errors import ToolkitError
from zztoolkit.llm import LLMServer
from zztoolkit.measure import Benchmark, benchmark, compare
from zztoolkit.measure.llm.asking import AskingLoad, encode_chat
from zztoolkit.measure.llm.prompts import read_chats
from zztoolkit.measure.llm.target import find_target
from zztoolkit.measure.profile import closed_loop, open_loop
from zztoolkit.samples import smollm2

pytestmark = pytest.mark.slow

QUESTIONS = [f"Tell me a story about {animal}." for animal in ("a wolf", "two foxes", "an owl who reads", "a bear in winter")]
WORDS = "river stone market lantern bicycle window harbour winter neighbour apple train paper".split()

@pytest.fixture(scope="module")
def llm():
    "Two answers grow at a time"
    with LLMServer(smollm2(), "measured", max_active=2) as server: yield server

def long_prompts(n: int) -> list[str]:
    "Prompts that share no beginning, so that no cache of prefixes helps"
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=250)) for _ in range(n)]


@pytest.mark.alone
def test_more_clients_than_places_are_bound_by_the_queue(llm, tmp_path):
    b = benchmark(llm, QUESTIONS, (1, 6), slo="ttft=60s,tpot=10s", seconds=2, warmup=0, max_tokens=12)
    one, six = b.levels
    assert [l.load for l in b.levels] == ["1 client", "6 clients"] and not one.errors and not six.errors
    for level in b.levels:
        t = level.total
        assert t.requests >= level.clients and t.rate > 0 and 0 < t.ttft_p50 <= t.ttft_p99 and 0 < t.tpot_p50 <= t.tpot_p99
        assert t.tokens > 0 and t.prompt_tokens > 0 and 0 < level.answer <= 12 and level.prompt > 30
        assert t.good == 1 and t.goodput > 0
        assert sum(level.stages.values()) == pytest.approx(t.mean) and 0 < level.growing < 2.1
        assert level.usage.cores["workers"] > 0 and level.usage.memory["workers"] > 100
    assert one.stages["queue"] < 0.1 * one.total.mean and six.stages["queue"] > 0.3 * six.total.mean
    assert b.bottleneck.resource == "queue" and "of 2" in str(b), b
    wait_until(lambda: is_idle(llm), 10)    # what still grew was cancelled

    again = Benchmark.load(b.save(tmp_path / "smol.json"))
    assert str(again.table().rows) == str(b.table().rows)
    changes = compare(b, again)
    assert {c.metric for c in changes} >= {"tokens", "rate", "ttft_p50", "tpot_p50", "goodput"} and not changes.significant
    assert png_of(b.show()).startswith(b"\x89PNG")

@pytest.mark.alone
def test_a_rate_that_is_too_high_is_bound_by_the_queue(llm, tmp_path):
    "Requests come whether or not there are places; their wait counts, and what did not end is reported"
    lines: list[str] = []
    b = benchmark(llm, QUESTIONS, rate=(1, 12), seconds=1, warmup=0, max_tokens=12, progress=lines.append)
    calm, busy = b.levels
    assert [l.load for l in b.levels] == ["1/s", "12/s"] and {*calm.errors, *busy.errors} <= {"unfinished"}
    assert b.bottleneck.resource == "queue" and "requests waited or grew at the end" in str(b), b
    assert busy.total.requests + busy.total.errors == pytest.approx(12 * busy.total.seconds, rel=0.3) and busy.total.rate < 0.8 * 12
    assert busy.waiting > 3 and busy.stages["queue"] > 0.3 * busy.total.mean and busy.total.ttft_p50 > calm.total.ttft_p50
    assert sum(busy.stages.values()) == pytest.approx(busy.total.mean)
    assert any("waiting" in line and line.startswith("12/s: ") for line in lines)
    rows, columns = b.table().rows, b.table().columns
    assert rows[1][columns.index("waiting")] == str(busy.waiting)
    again = Benchmark.load(b.save(tmp_path / "rates.json"))
    assert str(again.table().rows) == str(b.table().rows) and png_of(b.show()).startswith(b"\x89PNG")

@pytest.mark.alone
def test_long_prompts_are_bound_by_prefill(llm):
    b = benchmark(llm, long_prompts(60), 2, seconds=1, warmup=0, max_tokens=2)
    assert b.bottleneck.resource == "prefill" and b.levels[0].stages["prefill"] > b.levels[0].stages["decode"], b
    assert b.levels[0].prompt > 250 and not b.levels[0].repeated

@pytest.mark.alone
def test_short_prompts_and_long_answers_are_bound_by_decode(llm):
    b = benchmark(llm, {"messages": [{"role": "user", "content": "Tell me a long story about a wolf."}], "max_tokens": 40}, 2, seconds=1, warmup=0)
    assert b.bottleneck.resource == "decode" and b.levels[0].answer > 20 and b.levels[0].repeated, b

def test_the_clients_count_what_the_server_counts(llm):
    "Tokens of prompts and answers, and the time to the first token"
    target = find_target(llm)
    before = target.counters()
    with AskingLoad(target, [encode_chat(c, target, 10) for c in read_chats(QUESTIONS)], closed_loop(3)) as load:
        wait_until(lambda: sum(a.is_good for a in load.asked) >= 9, 120)
    wait_until(lambda: is_idle(llm), 10)
    after, good = target.counters(), [a for a in load.asked if a.is_good]
    answered, read = after.tokens - before.tokens, after.prompt_tokens - before.prompt_tokens
    assert 0 <= answered - sum(a.tokens for a in good) <= 3 * 10
    assert 0 <= read - sum(a.prompt_tokens for a in good) <= 3 * max(a.prompt_tokens for a in good)
    begun = [a.ttft for a in load.asked if a.parts]
    first = after.first.since(before.first)
    assert 0 <= first.count - len(begun) <= 3
    assert 0.9 < sum(begun) / len(begun) / (1000 * first.mean) < 1.5

def test_an_address_that_speaks_openais_api(llm, monkeypatch):
    target = find_target(f"{llm.url}/v1", token=llm.token)
    assert (target.url, target.name, target.pid) == (llm.url, llm.name, 0) and target.counters() and llm.token not in repr(target)
    monkeypatch.setenv("OPENAI_API_KEY", llm.token)
    b = benchmark(llm.url, "Hello", 1, seconds=1, warmup=0, max_tokens=4)
    assert b.levels[0].total.tokens > 0 and "engine" not in b.table().columns and "queue" in b.levels[0].stages
    with pytest.raises(ToolkitError, match="401"): benchmark(llm.url, "Hello", 1, token="wrong")
    with pytest.raises(ToolkitError, match="no model 'gpt' there"): benchmark(llm.url, "Hello", 1, model="gpt")
    with pytest.raises(ToolkitError, match="does not respond"): benchmark("http://127.0.0.1:9", "Hello", 1)
    with pytest.raises(ToolkitError, match="not an address"): benchmark("classifier", "Hello", 1)

def test_failures_are_counted_by_kind(llm):
    "A prompt longer than the context is rejected; the others are answered"
    b = benchmark(llm, ["Hello", "word " * 9000], 2, seconds=1, warmup=0, max_tokens=4)
    [level] = b.levels
    assert set(level.errors) == {"400 context_length_exceeded"} and level.total.requests and 0 < level.total.good < 1
    with pytest.raises(ToolkitError, match="(?s)no request got a good answer.*context_length_exceeded"):
        benchmark(llm, "word " * 9000, 1, seconds=1, warmup=0)

def test_what_does_not_fit_a_language_model(llm):
    with pytest.raises(ToolkitError, match="over HTTP"): benchmark(llm, "Hello", grpc=True)
    with pytest.raises(ToolkitError, match="rate must be more than 0"): benchmark(llm, "Hello", rate=0)
    with pytest.raises(ToolkitError, match="not an objective of a language model"): benchmark(llm, "Hello", slo="50ms")
    with pytest.raises(ToolkitError, match="nothing to ask"): benchmark(llm, [])

def test_a_model_of_another_process_is_found_by_its_name(llm, tmp_path):
    "`zz bench NAME`: with its address, its token, what it counts, and its processes"
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS))
    zz = shutil.which("zz", path=str(Path(sys.executable).parent))
    def bench(name: str, *args: str) -> subprocess.CompletedProcess:
        return subprocess.run([zz, "bench", name, str(tmp_path / "questions.txt"), *args], capture_output=True, text=True)
    found = bench(llm.name, "--rate", "2,4", "--seconds", "1", "--max-tokens", "2", "--save", str(tmp_path / "rates.json"))
    assert found.returncode == 0 and "bound by" in found.stdout, found.stderr
    b = Benchmark.load(tmp_path / "rates.json")
    assert [l.load for l in b.levels] == ["2/s", "4/s"] and b.setup.slots == 2 and b.setup.is_here and not b.levels[0].errors
    assert llm.token not in found.stdout + found.stderr + " ".join(psutil.Process(llm.keeper).cmdline())
    unknown = bench("stranger")
    assert unknown.returncode == 1 and "no running server has a model 'stranger'" in unknown.stderr
    assert f"{llm.name} (a language model, {llm.url})" in "".join(unknown.stderr.split("\n")), unknown.stderr

def test_a_name_that_is_not_clear(llm):
    same, loading = LLMServer(smollm2(), llm.name), LLMServer(smollm2(), "loading")
    try:
        same.spawn(), loading.spawn()
        with pytest.raises(ToolkitError, match="loading is not ready"): _find_running("loading")
        with pytest.raises(ToolkitError, match="more than one running server has a model 'measured'"): _find_running(llm.name)
    finally: same.kill(), loading.kill()
    found = _find_running(llm.name)
    assert (found.url, found.token, found.keeper, found.max_active) == (llm.url, llm.token, llm.keeper, 2) and llm.token not in repr(found)
    with pytest.raises(ToolkitError, match="zz tune is for archives"): _find_endpoint(llm.name)


# Another server: a script that speaks as vLLM does, and can fail

class FakeVLLM(BaseHTTPRequestHandler):
    "Answers of three parts; the body of a request says how they fail"
    bodies: list[dict] = []
    waiting, released = 0, threading.Event()
    metrics = "vllm:num_requests_running{engine=\"0\"} 1.0\nvllm:request_queue_time_seconds_sum 3.0\nvllm:request_queue_time_seconds_count 2.0\n"

    def log_message(self, *_): pass

    def do_GET(self):
        text = self.metrics if self.path == "/metrics" else json.dumps({"data": [{"id": "llama"}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append(body)
        how = body["messages"][0]["content"]
        if how == "hold":       # until the test lets it go on
            FakeVLLM.waiting += 1
            self.released.wait(60)
        self.send_response(429 if how == "full" else 200)
        self.end_headers()
        if how == "full": return self.wfile.write(b"not JSON")
        for part in ("", "The", " capital", " is Paris"): self.event({"choices": [{"index": 0, "delta": {"content": part}}]})
        if how == "error": return self.event({"error": {"message": "EngineCore died", "type": "EngineDead"}})
        if how == "cut": return
        if how == "counted": self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 30}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value): self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

@contextmanager
def fake_vllm():
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeVLLM)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

def test_vllm_is_asked_for_answers_of_one_length_and_its_counts_are_read():
    with fake_vllm() as url:
        target = find_target(url)
        assert target.name == "llama" and target.counters().queue.mean == 1.5
        b = benchmark(url, "counted", 1, seconds=1, warmup=0, max_tokens=30)
        assert FakeVLLM.bodies[-1]["ignore_eos"] and FakeVLLM.bodies[-1]["max_tokens"] == 30
        assert (b.levels[0].answer, b.levels[0].prompt) == (30, 7)
        uncounted = benchmark(url, "good", 1, seconds=1, warmup=0).levels[0]
        assert uncounted.answer == 3     # parts, where the server does not count
        assert not any(uncounted.errors)

@pytest.mark.parametrize("how, kind", [("full", "429"), ("error", "500 EngineDead"), ("cut", "Cut")])
def test_every_failure_has_a_kind(how, kind):
    with fake_vllm() as url:
        b = benchmark(url, ["good", how], 1, seconds=1, warmup=0)
        assert set(b.levels[0].errors) == {kind} and b.levels[0].total.requests, b.levels[0].errors

@pytest.fixture
def held():
    "An address whose answers are held until `FakeVLLM.released` is set"
    FakeVLLM.waiting = 0
    FakeVLLM.released.clear()
    with fake_vllm() as url:
        yield find_target(url), [encode_chat(c, find_target(url), 3) for c in read_chats("hold")]
        FakeVLLM.released.set()

def test_at_a_rate_requests_come_while_earlier_ones_wait(held):
    "Their times count from when they were due"
    target, bodies = held
    with AskingLoad(target, bodies, open_loop(50, poisson=True)) as load:
        wait_until(lambda: FakeVLLM.waiting >= 5, 30)
        assert load.waiting(load.asked[4].began + 1e-9) == 5 and not load.is_warm
        FakeVLLM.released.set()
        wait_until(lambda: sum(a.is_good for a in load.asked) >= 5, 30)
    first, fifth = load.asked[0], load.asked[4]
    assert load.is_warm and first.ttft > 1000 * (fifth.began - first.began) > 0

def test_a_request_that_the_client_has_no_place_for_waits_there(held):
    target, bodies = held
    with AskingLoad(target, bodies, open_loop(50, limit=1)) as load:
        wait_until(lambda: len(load.asked) >= 3, 30)
        assert FakeVLLM.waiting <= 1
        FakeVLLM.released.set()
        wait_until(lambda: sum(a.is_good for a in load.asked) >= 3, 30)
    first, second = load.asked[:2]
    assert second.sent >= first.ended and second.ttft > second.client_queue > 0
