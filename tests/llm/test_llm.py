"A real language model behind OpenAI's own client."
from __future__ import annotations

import json, random, time
from concurrent.futures import ThreadPoolExecutor

import httpx, jsonschema, openai, psutil, pytest

from support.llms import check_place_is_freed, is_idle, kill_owner_of, STORY
from support.pods import wait_until
from zztoolkit.errors import ToolkitError
from zztoolkit.llm import LLMServer
from zztoolkit.llm.model import find_model, openvino_folder
from zztoolkit.samples import smollm2
from zztoolkit.serving import Settings
from zztoolkit.serving.failures import PredictionError

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PERSON = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 12},
                   "age": {"type": "integer", "minimum": 0, "maximum": 120}}}

@pytest.fixture(scope="module")
def llm():
    with LLMServer(smollm2(), "smol") as server: yield server

def client_of(server: LLMServer, **options) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0, http_client=http, **options)

@pytest.fixture(scope="module")
def client(llm):
    with client_of(llm) as c: yield c

def chat(client, messages=CAPITAL, **options):
    return client.chat.completions.create(
        model="smol", messages=messages, **{"max_tokens": 24, "temperature": 0} | options)

def text_of(stream) -> str: return "".join(e.choices[0].delta.content or "" for e in stream if e.choices)

def send(llm, body: bytes | dict, path: str = "/v1/chat/completions") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(llm.url + path, content=content, headers=llm.headers, timeout=60, trust_env=False)


def test_it_knows_the_capital_of_france(client):
    r = chat(client)
    assert "Paris" in r.choices[0].message.content
    assert (r.choices[0].finish_reason, r.object, r.model) == ("stop", "chat.completion", "smol")
    assert r.usage.prompt_tokens > 20 and 5 <= r.usage.completion_tokens <= 24
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens

def test_the_check_at_its_load(llm): assert llm.about["check"] == "gives the known answer: Paris"

def test_a_stream_comes_in_pieces(client):
    start, times, parts = time.monotonic(), [], []
    for event in chat(client, STORY, max_tokens=40, stream=True, stream_options={"include_usage": True}):
        parts.append(event)
        if event.choices and event.choices[0].delta.content: times.append(time.monotonic() - start)
    assert len(times) > 5 and times[0] < times[-1] / 2
    assert [e.choices[0].finish_reason for e in parts if e.choices][-2:] == [None, "length"]
    assert parts[-1].usage.completion_tokens == 40 and parts[-1].choices == []
    whole = chat(client, STORY, max_tokens=40)
    assert text_of(parts) == whole.choices[0].message.content

def test_four_at_once_answer_right(llm, client):
    before = llm.status().tokens
    with ThreadPoolExecutor(4) as pool: answers = list(pool.map(lambda _: chat(client), range(4)))
    assert all("Paris" in a.choices[0].message.content for a in answers)
    assert llm.status().tokens - before == sum(a.usage.completion_tokens for a in answers)

def test_completions_and_stop(client):
    def complete(prompt, **options): return client.completions.create(
        model="smol", prompt=prompt, temperature=0, **options)
    counting = complete("1, 2, 3, 4, 5, 6,", max_tokens=12)
    assert " 7, 8" in counting.choices[0].text and counting.choices[0].finish_reason == "length"
    stopped = complete("1, 2, 3, 4, 5, 6,", max_tokens=50, stop=["9", "no"])
    assert stopped.choices[0].text == counting.choices[0].text.partition("9")[0]
    assert stopped.choices[0].finish_reason == "stop" and stopped.usage.completion_tokens < 12
    assert complete("A word").usage.completion_tokens == 16        # OpenAI's default
    assert complete([28, 216, 34, 28], max_tokens=1).usage.prompt_tokens == 4
    streamed = complete("1, 2, 3, 4, 5, 6,", max_tokens=12, stream=True)
    assert "".join(e.choices[0].text for e in streamed) == counting.choices[0].text

def test_a_conversation_in_parts_and_roles(client):
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}]
    first = chat(client).choices[0].message
    messages = [{"role": "user", "content": parts}]
    assert chat(client, messages).choices[0].message.content == first.content
    again = chat(client, [*CAPITAL, first, {"role": "user", "content": "Thank you"}], max_tokens=4)
    assert again.usage.prompt_tokens > 50
    developer = chat(client, [{"role": "developer", "content": "Be short"}, *CAPITAL], max_tokens=4)
    system = chat(client, [{"role": "system", "content": "Be short"}, *CAPITAL], max_tokens=4)
    assert developer.choices[0].message.content == system.choices[0].message.content

def test_an_answer_fits_its_schema(client):
    answer = chat(client, [{"role": "user", "content": "Describe a person."}], max_tokens=80, response_format={
        "type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}})
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), PERSON)

def test_a_schema_that_cannot_be_followed_harms_no_other(client):
    running = chat(client, STORY, max_tokens=60, stream=True)
    next(iter(running))
    for schema in ({"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}):
        with pytest.raises(openai.BadRequestError, match="cannot be followed|can be followed"):
            chat(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert len(text_of(running)) > 50

@pytest.mark.parametrize("options, param", [
    ({"temperature": 3}, "temperature"), ({"top_p": 0}, "top_p"), ({"n": 2}, "n"), ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 8192}, "messages"), ({"seed": 1.5}, "seed"), ({"stop": [""]}, "stop.0"), ({"messages": []}, "messages"),
    ({"messages": [{"role": "cat", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"), ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "xml"}}, "response_format.type"), ({"stream": "yes"}, "stream")])
def test_wrong_parameters(client, options, param):
    with pytest.raises(openai.BadRequestError) as e: chat(client, **options)
    assert e.value.type == "invalid_request_error" and e.value.param == param and e.value.body["message"]

def test_unknown_model_path_and_token(llm, client):
    assert [m.id for m in client.models.list()] == ["smol"] and client.models.retrieve("smol").id == "smol"
    with pytest.raises(openai.NotFoundError) as e: client.models.retrieve("gpt")
    assert e.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError): client.chat.completions.create(model="gpt", messages=CAPITAL)
    with pytest.raises(openai.AuthenticationError): chat(client.with_options(api_key="another"))
    assert send(llm, {}, "/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{llm.url}/v1/chat/completions", trust_env=False).json()["error"]["message"]
    assert send(llm, b"x" * (9 << 20)).status_code == 413

def test_prompt_longer_than_the_context(client):
    for words in (8_200, 60_000):
        with pytest.raises(openai.BadRequestError) as e:
            chat(client, [{"role": "user", "content": "wolf " * words}], max_tokens=None)
        assert e.value.code == "context_length_exceeded"
    assert "Paris" in chat(client).choices[0].message.content

@pytest.mark.parametrize("text", ["", " ", "😀🎉👩‍👩‍👧", "\x00\x01\x1b[31m", "你好，世界", "<|im_end|>", "\u202e\ufeff\uffff"])
def test_texts_of_every_kind(client, text):
    r = chat(client, [{"role": "user", "content": text}], max_tokens=6)
    assert r.usage.completion_tokens <= 6 and "\ufffd" not in r.choices[0].message.content

def malformed(rng: random.Random) -> bytes:
    "Return the body of a request with something wrong in it, or several things"
    values = [None, True, -1, 1e308, "", "x" * 100, [], {}, [[]], {"a": {}}, "\ud800", 2**70, [None], float("nan")]
    body = {"model": "smol", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    for _ in range(rng.randint(1, 3)):
        key = rng.choice([*body, "stream", "stop", "seed", "temperature", "top_p", "response_format", "stream_options", "\x00"])
        body[key] = rng.choice(values)
        if rng.random() < .3: body["messages"] = [{"role": rng.choice(values), "content": rng.choice(values)}]
    text = json.dumps(body).encode()
    if rng.random() < .3: text = text[:rng.randrange(len(text))]
    if rng.random() < .2: text = bytes(rng.choice(b"\xff\x00{[\"") if rng.random() < .1 else b for b in text)
    return text

@pytest.mark.slow
def test_malformed_requests_are_the_callers_fault(llm):
    rng = random.Random(7)
    bodies = [malformed(rng) for _ in range(99)] + [b"[" * 100_000]
    statuses = [send(llm, b, rng.choice(["/v1/chat/completions", "/v1/completions"])).status_code for b in bodies]
    assert set(statuses) <= {200, 400, 404} and statuses.count(400) > 50
    assert is_idle(llm)

def test_a_client_that_goes_away_frees_its_place(llm, client):
    check_place_is_freed(llm, client, chat)
    tokens = llm.status().tokens
    time.sleep(0.5)
    assert llm.status().tokens == tokens and "zz_llm_cancelled_total" in llm.metrics()

def test_chat_in_a_cell(llm, capsys):
    answer = llm.chat("What is the capital of France?", show=True)
    assert capsys.readouterr().out == f"{answer}\n" and "Paris" in answer and answer.finish_reason == "stop"
    assert llm.chat(CAPITAL, system="You are a helpful AI assistant named SmolLM, trained by Hugging Face", show=False) == answer
    with pytest.raises(PredictionError, match="400 .*temperature"): llm.chat("x", temperature=7, show=False)


@pytest.fixture(scope="module")
def small():
    "One with a place for one answer, and for one request that waits"
    with LLMServer(smollm2(), "smol", settings=Settings(job_queue_size=1, drain_timeout=60), max_active=1) as server:
        yield server

@pytest.mark.slow
def test_a_full_queue_rejects(small):
    with client_of(small) as client, ThreadPoolExecutor() as pool:
        running = chat(client, STORY, max_tokens=5000, stream=True)
        next(iter(running))
        waiting = pool.submit(chat, client)
        wait_until(lambda: small.status().waiting == 1, 10)
        with pytest.raises(openai.RateLimitError, match="waiting already"): chat(client)
        running.close()
        assert "Paris" in waiting.result().choices[0].message.content

@pytest.mark.slow
def test_an_engine_that_dies_is_started_again(small):
    with client_of(small) as client:
        running = chat(client, STORY, max_tokens=5000, stream=True)
        events = iter(running)
        next(events)
        keeper = psutil.Process(small.process.pid)
        [worker] = [p for p in keeper.children(recursive=True) if "zztoolkit.llm.worker" in p.cmdline()]
        worker.kill()
        with pytest.raises(openai.APIError, match="the engine died"): list(events)
        wait_until(lambda: small.is_healthy, 60)
        assert "Paris" in chat(client).choices[0].message.content
        assert "zz_llm_engine_restarts 1.0" in small.metrics()

@pytest.mark.slow
def test_it_drains_in_the_middle_of_a_stream(small):
    with client_of(small) as client, ThreadPoolExecutor() as pool:
        running = chat(client, STORY, max_tokens=120, stream=True)
        next(iter(running))
        rest, keeper = pool.submit(list, running), small.process
        processes = psutil.Process(keeper.pid).children(recursive=True)
        stopped = pool.submit(small.stop)
        wait_until(lambda: small._get("/health").status_code == 503, 10)
        with pytest.raises(openai.InternalServerError) as e: chat(client)
        assert e.value.status_code == 503 and e.value.code == "stopping"
        events = rest.result()
        assert events[-1].choices[0].finish_reason == "length" and len(events) > 60
        assert stopped.result() is True and keeper.returncode == 0
    assert len(processes) == 2 and not any(p.is_running() for p in processes)

@pytest.mark.slow
def test_it_ends_with_its_owner(weights):
    pids = kill_owner_of(f"LLMServer({str(weights)!r}, settings=Settings(drain_timeout=1))", 120)
    assert len(pids) == 3
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), 30)

@pytest.fixture
def weights(tmp_path):
    "A folder of the same model, as a user brings one, without a known answer"
    folder = tmp_path / "own"
    folder.mkdir()
    for file in openvino_folder(find_model(smollm2())).iterdir():
        if file.name != "known_answer.json": (folder / file.name).symlink_to(file)
    return folder

@pytest.mark.slow
def test_an_engine_that_is_wrong_does_not_serve(weights):
    (weights / "known_answer.json").write_text('{"question": "What is the capital of France?", "contains": "London"}')
    with pytest.raises(ToolkitError, match="does not give the model's known answer"): LLMServer(weights).start()
