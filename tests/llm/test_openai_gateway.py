"OpenAI's own client against the gateway: language models and embeddings beside the other protocols."
from __future__ import annotations

import threading
from contextlib import contextmanager

import grpc, httpx, numpy as np, openai, psutil, pytest, tritonclient.grpc
from concurrent.futures import ThreadPoolExecutor
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from support.llms import check_place_is_freed, STORY
from support.pods import wait_until
from zztoolkit.archive.packing import pack
from zztoolkit.gateway import Gateway
from zztoolkit.llm import LLMServer
from zztoolkit.samples import smollm2
from zztoolkit.serving.rollout import deploy

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]

LETTERS = """
from zztoolkit import Handler, RequestError
class Letters(Handler):
    "How often the first letters of the alphabet occur"
    def preprocess(self, requests): return [r["text"] for r in requests]
    def inference(self, texts): return texts
    def postprocess(self, texts): return [self.vector(t) for t in texts]
    def vector(self, text):
        if text == "bad": raise RequestError("bad is bad")
        return {"not": "a vector"} if text == "odd" else [text.count(c) / 3 for c in "abcd"]
"""

@pytest.fixture(scope="module")
def llm():
    with LLMServer(smollm2(), "smol") as s: yield s

@pytest.fixture(scope="module")
def gateway(server, llm):
    with Gateway(server, llms=[llm]) as g: yield g

@pytest.fixture(scope="module")
def letters(server, tmp_path_factory):
    file = tmp_path_factory.mktemp("letters") / "letters.py"
    file.write_text(LETTERS)
    endpoint = deploy(server, pack("letters", file, store=file.parent, batchSize=8))
    yield endpoint
    endpoint.remove()

@pytest.fixture(scope="module")
def client(gateway):
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.token, max_retries=0, http_client=http) as c: yield c

def chat(client, messages=CAPITAL, **options):
    return client.chat.completions.create(model="smol", messages=messages, **{"max_tokens": 24, "temperature": 0} | options)


def test_chats_and_completions(client):
    whole = chat(client)
    assert "Paris" in whole.choices[0].message.content
    parts = [e.choices[0].delta.content or "" for e in chat(client, stream=True)]
    assert len(parts) > 5 and "".join(parts) == whole.choices[0].message.content
    done = client.completions.create(model="smol", prompt="1, 2, 3, 4, 5,", max_tokens=6, temperature=0)
    assert " 6, 7" in done.choices[0].text

def test_errors_are_openais(client, gateway):
    with pytest.raises(openai.BadRequestError) as e: chat(client, temperature=9)
    assert e.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as e: client.chat.completions.create(model="gpt", messages=CAPITAL)
    assert e.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError): chat(client.with_options(api_key="x"))
    with httpx.Client(base_url=gateway.url, headers=gateway.headers, trust_env=False) as http:
        for body in (b"", b"{", b"[]", b'{"model": 7}', b"\xff", b"[" * 100_000):
            for path in ("chat/completions", "completions", "embeddings"):
                r = http.post(f"/v1/{path}", content=body)
                assert r.status_code == 400 and r.json()["error"]["type"] == "invalid_request_error"
        assert http.get("/v1/chat/completions").json()["error"]["message"] == "this takes POST"

def test_a_client_that_goes_away_frees_its_place(client, llm):
    check_place_is_freed(llm, client, chat)

def test_embeddings(client, letters):
    texts = ["aab", "cd", "", "a" * 5000]
    got = client.embeddings.create(model="letters", input=texts[:2])      # base64: the client's own choice
    assert np.allclose([e.embedding for e in got.data], [[2 / 3, 1 / 3, 0, 0], [0, 0, 1 / 3, 1 / 3]])
    assert [e.index for e in got.data] == [0, 1] and got.usage.total_tokens == 0
    plain = client.embeddings.create(model="letters", input="aab", encoding_format="float")
    assert plain.data[0].embedding == [2 / 3, 1 / 3, 0.0, 0.0]
    many = client.embeddings.create(model="letters", input=["a" * (i + 1) for i in range(40)])
    assert np.allclose([e.embedding[0] * 3 for e in many.data], range(1, 41))

@pytest.mark.parametrize("options, message", [
    ({"input": ["a", "bad"]}, "input 1: .*bad is bad"), ({"input": "odd"}, "no vector"), ({"input": [1, 2]}, "input.0"),
    ({"input": []}, "input"), ({"input": ""}, "input.0"), ({"dimensions": 2}, "dimensions: is not supported")])
def test_embeddings_that_fail(client, letters, options, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.embeddings.create(model="letters", **{"input": "a"} | options)

def test_unknown_model_of_embeddings(client):
    with pytest.raises(openai.NotFoundError): client.embeddings.create(model="nobody", input="a")

def test_models_beside_tensorflow_servings_routes(client, gateway, letters):
    assert {"smol", "letters"} <= {m.id for m in client.models.list()}
    assert client.models.retrieve("smol").object == "model"
    with httpx.Client(base_url=gateway.url, headers=gateway.headers, trust_env=False, timeout=30) as http:
        status = http.get("/v1/models/letters").json()["model_version_status"]
        assert status[0]["state"] == "AVAILABLE"
        predicted = http.post("/v1/models/letters:predict", json={"instances": [{"text": "aab"}]})
        assert predicted.json() == {"predictions": [[2 / 3, 1 / 3, 0, 0]]}
        assert isinstance(http.get("/v1/models/nobody").json()["error"], str)       # TensorFlow Serving's form

@pytest.mark.slow
def test_it_drains_a_stream(server, llm):
    with Gateway(server) as gateway:
        http = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.token, max_retries=0, http_client=http) as client:
            with pytest.raises(openai.NotFoundError): chat(client)
            gateway.add(llm)
            wait_until(lambda: "smol" in {m.id for m in client.models.list()}, 10)
            running = chat(client, STORY, max_tokens=80, stream=True)
            next(iter(running))
            stopping = threading.Thread(target=gateway.stop)
            stopping.start()
            events = list(running)
            stopping.join()
        assert events[-1].choices[0].finish_reason == "length" and not gateway.running

@contextmanager
def readiness(gateway: Gateway, name: str):
    "What the gateway says of itself and of a model, over HTTP, gRPC and gRPC's health service"
    rpc, channel = tritonclient.grpc.InferenceServerClient(gateway.grpc_address), grpc.insecure_channel(gateway.grpc_address)
    health = HealthStub(channel)
    def says(service: str) -> bool:
        return health.Check(HealthCheckRequest(service=service)).status == HealthCheckResponse.SERVING
    def states() -> list[bool]:
        whole, of_model = (http.get(path).json()["ready"] for path in ("/v2/health/ready", f"/v2/models/{name}/ready"))
        return [whole, rpc.is_server_ready(headers=gateway.headers), says(""),
                of_model, rpc.is_model_ready(name, headers=gateway.headers), says(name)]
    with httpx.Client(base_url=gateway.url, headers=gateway.headers, trust_env=False, timeout=30) as http, rpc, channel: yield states

@pytest.mark.slow
def test_a_model_that_dies_in_the_middle(server):
    "Neither it nor the gateway is ready while its engine loads, and once its server has died"
    with (LLMServer(smollm2(), "mortal") as mortal, Gateway(server, llms=[mortal]) as gateway,
          readiness(gateway, "mortal") as states):
        assert states() == [True] * 6
        [front] = psutil.Process(mortal.process.pid).children()
        [engine] = front.children()
        engine.kill()       # the server starts another
        wait_until(lambda: states() == [False] * 6, 30)
        wait_until(lambda: states() == [True] * 6, 120)
        http = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.token, max_retries=0, http_client=http) as client:
            def ask(**options): return client.chat.completions.create(
                model="mortal", messages=STORY, max_tokens=5000, **options)
            running = iter(ask(stream=True))
            next(running)
            with ThreadPoolExecutor() as pool:
                whole = pool.submit(ask)
                wait_until(lambda: mortal.status().active == 2, 10)
                front.kill()
                with pytest.raises(openai.APIError, match="ended in the middle"): list(running)
                with pytest.raises(openai.InternalServerError) as e: whole.result()
                assert e.value.status_code == 502
            with pytest.raises(openai.InternalServerError, match="does not respond"): ask()
            assert states() == [False] * 6
            mortal.stop()
            wait_until(lambda: "mortal" not in {m.id for m in client.models.list()}, 10)
        with httpx.Client(base_url=gateway.url, headers=gateway.headers, trust_env=False) as http:
            assert http.get("/v2/health/ready").json() == {"ready": True} and http.get("/v2/models/mortal/ready").status_code == 404
