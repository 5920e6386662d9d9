"Clients that others wrote, unmodified, against the gateway of a notebook's server."
from __future__ import annotations

import base64, gzip, json, os, socket, struct, threading

import grpc, httpx, ml_dtypes, numpy as np, pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from hypothesis import given, HealthCheck, settings, strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from support.pods import wait_until
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.gateway import Gateway
from zztoolkit.serving.rollout import deploy

ECHO = """
import time
from zztoolkit import Handler, RequestError
class Echo(Handler):
    def preprocess(self, requests): return requests
    def inference(self, xs):
        time.sleep(0.02)
        return xs
    def postprocess(self, xs): return [self.one(x) for x in xs]
    def one(self, x):
        if x == "bad": raise RequestError("bad is bad")
        if isinstance(x, (bytes, bytearray)): return bytes(x)
        return x if isinstance(x, str) else {"got": x, "version": VERSION}
"""

@pytest.fixture(scope="module")
def gateway(server):
    with Gateway(server) as g: yield g

@pytest.fixture(scope="module")
def clients(gateway):
    http, rpc = httpclient.InferenceServerClient(gateway.url.removeprefix("http://")), grpcclient.InferenceServerClient(gateway.grpc_address)
    yield {"http": (httpclient, http), "grpc": (grpcclient, rpc)}
    http.close()
    rpc.close()

@pytest.fixture(params=["http", "grpc"])
def client(request, clients, gateway):
    "`infer(model, name, array, datatype)` by one of tritonclient's two clients"
    module, client = clients[request.param]

    def infer(model: str, name: str, array: np.ndarray, datatype: str, **options):
        tensor = module.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        return client.infer(model, [tensor], headers=dict(gateway.headers), **options)
    infer.client, infer.module = client, module
    return infer

@pytest.fixture(scope="module")
def call(gateway):
    "One HTTP request, as curl sends it"
    with httpx.Client(base_url=gateway.url, headers=gateway.headers, trust_env=False, timeout=30) as http: yield http.request

@pytest.fixture(scope="module")
def echo(server, tmp_path_factory):
    "A handler that returns what it gets"
    file = tmp_path_factory.mktemp("echo") / "echo.py"
    file.write_text(version(1))
    endpoint = deploy(server, pack("echo", file, version="1", store=file.parent))
    yield endpoint
    endpoint.remove()

def as_bytes(values) -> np.ndarray: return np.array(values, dtype=object)

def as_dict(answer) -> dict | list:
    "The same of both clients: gRPC's is a message"
    from google.protobuf.json_format import MessageToDict
    return answer if isinstance(answer, (dict, list)) else MessageToDict(answer, preserving_proto_field_name=True)

def responses(result) -> list: return [json.loads(x) for x in result.as_numpy("response")]

def version(n: int) -> str: return ECHO.replace("VERSION", str(n))

# The Open Inference Protocol

def test_photographs_as_bytes_and_as_the_models_own_tensors(client, classifier, chain, photos):
    "Both give what /predictions gives"
    want = [classifier.predict(p) for p in photos[:12]]
    result = client("classifier", "request", as_bytes([p.read_bytes() for p in photos[:12]]), "BYTES")
    assert responses(result) == want and result.as_numpy("status").tolist() == [200] * 12
    pixels = chain.batch(photos[:12]).items
    assert responses(client("classifier", "inputs", np.ascontiguousarray(pixels), "FP32")) == want

def test_the_models_own_outputs(client, classifier, lite0, chain, photos):
    "Tensors in, tensors out, as other servers of the protocol have it: the artifact's own, without the handler"
    pixels = np.ascontiguousarray(chain.batch(photos[:3]).items)
    def ask(outputs: list[str], x=pixels): return client("classifier", "inputs", x, "FP32", outputs=[client.module.InferRequestedOutput(o) for o in outputs])
    scores = ask(["output0"]).as_numpy("output0")
    np.testing.assert_allclose(scores, lite0.load()(pixels), rtol=1e-4, atol=1e-5)
    with pytest.raises(InferenceServerException, match="no such output: scores; there are output0, response, status"): ask(["scores"])
    with pytest.raises(InferenceServerException, match="without response and status"): ask(["output0", "response"])
    with pytest.raises(InferenceServerException, match="row 0: InputError: .* dimension 2 must be 224"): ask(["output0"], np.zeros((2, 3, 5, 224), "f4"))

def test_bfloat16_is_what_float32_would_be(client, classifier, chain, photos):
    halves = chain.batch(photos[:2]).items.astype(ml_dtypes.bfloat16)
    outputs = [client.module.InferRequestedOutput("output0")]
    scores = [client("classifier", "inputs", x, datatype, outputs=outputs).as_numpy("output0") for x, datatype in ((halves, "BF16"), (halves.astype("f4"), "FP32"))]
    np.testing.assert_array_equal(*scores)

@pytest.mark.parametrize("megabytes", [3, 20])
def test_a_body_arrives_as_it_was_sent(client, echo, megabytes):
    "Larger than a chunk, and larger than a piece"
    raw = b"\xff" + os.urandom(megabytes << 20)
    assert client("echo", "request", as_bytes([raw]), "BYTES").as_numpy("response")[0] == raw

def test_one_broken_image_of_three(client, classifier, photos):
    good = [p.read_bytes() for p in photos[:2]]
    result = client("classifier", "request", as_bytes([good[0], good[1][:2000], good[1]]), "BYTES")
    assert result.as_numpy("status").tolist() == [200, 400, 200]
    first, broken, last = responses(result)
    assert [first, last] == [classifier.predict(p) for p in photos[:2]] and broken["error"]["type"] == "DecodeError"

def test_the_only_row_fails_as_the_request(client, classifier):
    with pytest.raises(InferenceServerException, match="DecodeError: not an image") as e: client("classifier", "request", as_bytes([b"no image"]), "BYTES")
    assert e.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")

def test_metadata_are_the_artifacts(client, classifier, lite0, gateway):
    given = {"headers": dict(gateway.headers)}
    about = client.client.get_model_metadata("classifier", **given)
    if not isinstance(about, dict): about = client.client.get_model_metadata("classifier", as_json=True, **given)
    [own, request] = about["inputs"]
    [spec] = lite0.inputs
    sizes = [int(n) for n in own["shape"]]
    assert own["name"] == spec.name and own["datatype"] == "FP32" and sizes == [n if isinstance(n, int) else -1 for n in spec.shape]
    assert request["datatype"] == "BYTES" and about["versions"] == [classifier.status.version]
    assert client.client.is_server_live(**given) and client.client.is_server_ready(**given) and client.client.is_model_ready("classifier", **given)

def test_metadata_say_what_goes_together(call, classifier):
    about = call("GET", "/v2/models/classifier").json()
    assert [x["parameters"] for x in about["inputs"]] == [{"alternative": "the model's own inputs"}, {"alternative": "request", "content": "an encoded image"}]
    assert [x.get("parameters") for x in about["outputs"]] == [{"only_for": "the model's own inputs"}, None, None]

def test_the_configuration(client, classifier, lite0, gateway):
    "Of the artifact and its server, as Triton has it: without the batch's axis"
    config = as_dict(client.client.get_model_config("classifier", headers=dict(gateway.headers)))
    config = config.get("config", config)
    own, request = config["input"]
    [spec], status = lite0.inputs, classifier.status
    assert own["name"] == spec.name and own["data_type"] == "TYPE_FP32" and list(map(int, own["dims"])) == list(spec.shape[1:])
    assert request["data_type"] == "TYPE_STRING" and own["optional"] and request["optional"]
    assert config["max_batch_size"] == status.batch_size and config["instance_group"][0]["count"] == status.workers
    assert int(config["dynamic_batching"]["max_queue_delay_microseconds"]) == 1000 * status.max_batch_delay

def test_the_repository_is_listed_and_not_changed(client, classifier, echo, gateway):
    given = {"headers": dict(gateway.headers)}
    index = as_dict(client.client.get_model_repository_index(**given))
    rows = index if isinstance(index, list) else index["models"]
    assert {"classifier", "echo"} <= {m["name"] for m in rows} and all(m["state"] == "READY" for m in rows if m["name"] == "echo")
    for change in (client.client.load_model, client.client.unload_model):
        with pytest.raises(InferenceServerException, match="does not (un)?load models; deploy them") as e: change("echo", **given)
        assert e.value.status() in ("501", "StatusCode.UNIMPLEMENTED")

def test_what_is_not_spoken_says_so(clients, gateway):
    with pytest.raises(InferenceServerException) as e: clients["grpc"][1].get_inference_statistics("echo", headers=dict(gateway.headers))
    assert e.value.status() == "StatusCode.UNIMPLEMENTED"

@pytest.mark.parametrize("model, wanted", [("nowhere", "no such model"), ("classifier", "has no version 99")])
def test_what_is_not_there(client, classifier, model, wanted):
    with pytest.raises(InferenceServerException, match=wanted) as e:
        client(model, "request", as_bytes([b"x"]), "BYTES", model_version="99" if model == "classifier" else "")
    assert e.value.status() in ("404", "StatusCode.NOT_FOUND")

def test_without_the_token(clients, classifier):
    for _, client in clients.values():
        with pytest.raises(InferenceServerException) as e: client.get_model_metadata("classifier", headers={"authorization": "Bearer wrong"})
        assert e.value.status() in ("401", "StatusCode.UNAUTHENTICATED")

def test_records_text_and_arrays(client, echo):
    "A str is text, JSON is JSON, and an error of the handler has its words"
    result = client("echo", "request", as_bytes([b"plain words", b'{"price": 3}', b"[1, 2]", b"bad", bytes(range(256))]), "BYTES")
    assert result.as_numpy("status").tolist() == [200, 200, 200, 400, 200]
    text, record, numbers, bad, raw = result.as_numpy("response")
    assert text == b"plain words" and raw == bytes(range(256))
    assert json.loads(record) == {"got": {"price": 3}, "version": 1} and json.loads(numbers)["got"] == [1, 2]
    assert json.loads(bad)["error"]["message"] == "bad is bad"

@pytest.mark.slow
def test_a_swap_loses_no_call(client, server, echo, tmp_path):
    "Calls one after another, while the next version takes over"
    def serve(n: int):
        file = tmp_path / "swapped.py"
        file.write_text(version(n))
        deploy(server, pack("swapped", file, version=str(n), store=tmp_path))
    if "swapped" not in server.management.models(): serve(1)
    before = int(server.endpoint("swapped").status.version)
    swap, served = threading.Thread(target=serve, args=[before + 1]), []
    swap.start()
    while swap.is_alive() or len(served) < 200: served += [r["version"] for r in responses(client("swapped", "request", as_bytes([b"{}"]), "BYTES"))]
    assert served[0] == before and served[-1] == before + 1 and served == sorted(served)

def test_a_key_that_another_process_renews(client, server, echo):
    "TorchServe's old key ends at once; the caller's token stays"
    server.management.tokens.renew("inference")
    assert responses(client("echo", "request", as_bytes([b"{}"]), "BYTES"))[0]["version"] == 1

@pytest.mark.slow
def test_more_rows_than_the_queue_holds(client, server, echo):
    rows = as_bytes([b'{"k": %d}' % k for k in range(2 * server.settings.job_queue_size)])
    result = client("echo", "request", rows, "BYTES")
    assert set(result.as_numpy("status").tolist()) == {200} and [r["got"]["k"] for r in responses(result)] == list(range(len(rows)))

# HTTP: JSON, gzip, and what is wrong with a request

def test_a_request_in_json(call, echo):
    tensor = {"name": "x", "datatype": "BYTES", "shape": [2], "data": ['{"a": 1}', "hello"]}
    body = {"id": "seven", "inputs": [tensor], "outputs": [{"name": "response"}]}
    text, packed = json.dumps(body).encode(), {"Content-Encoding": "gzip"}
    two = gzip.compress(text[:40]) + gzip.compress(text[40:])       # a file of two members, as some clients write it
    for options in ({"json": body}, {"content": gzip.compress(text), "headers": packed}, {"content": two, "headers": packed}):
        r = call("POST", "/v2/models/echo/infer", **options)
        assert r.status_code == 200, r.text
        [output] = r.json()["outputs"]
        assert r.json()["id"] == "seven" and output["shape"] == [2]
        assert json.loads(output["data"][0]) == {"got": {"a": 1}, "version": 1} and output["data"][1] == "hello"

def test_an_image_as_base64(call, classifier, photos):
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photos[0].read_bytes()).decode()], "parameters": {"content_type": "base64"}}
    r = call("POST", "/v2/models/classifier/infer", json={"inputs": [tensor]})
    assert json.loads(r.json()["outputs"][0]["data"][0]) == classifier.predict(photos[0])

WRONG = {
    "no JSON": (b"{", {}), "no object": (b"[]", {}), "no inputs": (b"{}", {}),
    "too many elements": (json.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["a", "b"]}]}).encode(), {}),
    "no such datatype": (json.dumps({"inputs": [{"name": "x", "datatype": "FP3", "shape": [1], "data": [1]}]}).encode(), {}),
    "words for numbers": (json.dumps({"inputs": [{"name": "inputs", "datatype": "FP32", "shape": [1], "data": ["a"]}]}).encode(), {}),
    "a negative size": (json.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1], "data": ["a"]}]}).encode(), {}),
    "a huge size": (json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1 << 40, 1 << 40], "data": [1]}]}).encode(), {}),
    "a length beyond the body": (b"{}", {"Inference-Header-Content-Length": "99"}),
    "a length that is none": (b"{}", {"Inference-Header-Content-Length": "x"}),
    "a length of a thousand digits": (b"{}", {"Inference-Header-Content-Length": "9" * 5000}),
    "half a character": (b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["\\ud800"]}]}', {}),
    "words for the model's numbers": (json.dumps({"inputs": [{"name": n, "datatype": "BYTES", "shape": [1], "data": ["a"]} for n in ("inputs", "more")]}).encode(), {}),
    "a fraction for a whole number": (json.dumps({"inputs": [{"name": "inputs", "datatype": "INT64", "shape": [1], "data": [1.5]}]}).encode(), {}),
    "no gzip": (b"{}", {"Content-Encoding": "gzip"}),
    "a cut element": ((head := json.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}]}).encode()) + struct.pack("<I", 99) + b"ab", {"Inference-Header-Content-Length": str(len(head))}),
    "bytes that belong to nothing": (head + struct.pack("<I", 2) + b"abcd", {"Inference-Header-Content-Length": str(len(head))}),
}

@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_the_callers_error(call, classifier, name):
    body, headers = WRONG[name]
    r = call("POST", "/v2/models/classifier/infer", content=body, headers=headers)
    assert 400 <= r.status_code < 500 and set(r.json()) == {"error"}, r.text

def test_wrong_tensors_of_the_model(client, classifier):
    "Another name, another shape, another number of inputs: the message says what is wanted"
    with pytest.raises(InferenceServerException, match="own inputs .inputs. or one tensor of BYTES"): client("classifier", "pixels", np.zeros((1, 3, 224, 224), "f4"), "FP32")
    with pytest.raises(InferenceServerException, match="dimension 2 must be 224"): client("classifier", "inputs", np.zeros((1, 3, 5, 224), "f4"), "FP32")

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["inputs", "outputs", "id", "parameters", "instances", "x"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["BYTES", "FP32"]),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["name", "datatype", "shape", "data", "parameters", "b64", "binary_data_size"]), x, max_size=5), max_leaves=12)))
def test_no_json_makes_it_fail(call, classifier, body):
    for path in ("/v2/models/classifier/infer", "/v1/models/classifier:predict"):
        r = call("POST", path, content=json.dumps(body).encode())
        assert r.status_code < 500, r.text

def test_a_body_over_the_limit(call, server):
    limit = server.settings.max_request_size
    r = call("POST", "/v2/models/classifier/infer", content=(b" " * (1 << 20) for _ in range(limit // (1 << 20) + 2)))
    assert r.status_code == 413
    bomb = gzip.compress(bytes(limit + 100))
    assert call("POST", "/v2/models/classifier/infer", content=bomb, headers={"Content-Encoding": "gzip"}).status_code == 413

def test_null_is_nothing(call, echo):
    "As clients send fields that are not set"
    body = {"id": None, "parameters": None, "outputs": None, "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["{}"], "parameters": None}]}
    r = call("POST", "/v2/models/echo/infer", json=body)
    assert r.status_code == 200 and "id" not in r.json()

@pytest.mark.parametrize("method, path, status", [("GET", "/v2/nothing", 404), ("GET", "/v2/models/echo/", 404), ("DELETE", "/v2/models/echo", 405)])
def test_other_addresses_are_errors_of_the_protocol(call, method, path, status):
    r = call(method, path)
    assert r.status_code == status and set(r.json()) == {"error"}

# gRPC: elements as fields of the message

def test_typed_contents(clients, gateway, echo):
    stub = clients["grpc"][1]._client_stub
    message = pb.ModelInferRequest(model_name="echo", inputs=[pb.ModelInferRequest.InferInputTensor(
        name="x", datatype="BYTES", shape=[2], contents=pb.InferTensorContents(bytes_contents=[b"one", b'{"two": 2}']))])
    answer = stub.ModelInfer(message, metadata=list(gateway.headers.items()))
    assert answer.raw_output_contents[0] == struct.pack("<I", 3) + b"one" + struct.pack("<I", len(x := b'{"got": {"two": 2}, "version": 1}')) + x

# gRPC's health service

def test_health(gateway, classifier):
    "Without a token, as a probe asks"
    with grpc.insecure_channel(gateway.grpc_address) as channel:
        health = HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService", "classifier"): assert health.Check(HealthCheckRequest(service=name)).status == HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as e: health.Check(HealthCheckRequest(service="nowhere"))
        assert e.value.code() == grpc.StatusCode.NOT_FOUND

def test_a_watcher_hears_of_the_end_and_does_not_delay_it(server, classifier):
    with Gateway(server) as gateway, grpc.insecure_channel(gateway.grpc_address) as channel:
        watching = HealthStub(channel).Watch(HealthCheckRequest(service="classifier"))
        statuses = [next(watching).status]
        gateway.stop()
        statuses += [r.status for r in watching]
    assert statuses == [HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING]

# TensorFlow Serving's REST

def test_instances_and_inputs(call, echo):
    r = call("POST", "/v1/models/echo:predict", json={"instances": [{"a": 1, "b": 2}, [1.5, 2], "words"]})
    assert [x["got"] if isinstance(x, dict) else x for x in r.json()["predictions"]] == [{"a": 1, "b": 2}, [1.5, 2], "words"]
    r = call("POST", "/v1/models/echo/versions/1:predict", json={"inputs": {"a": [1, 2], "b": [3, 4]}})
    assert [x["got"] for x in r.json()["outputs"]] == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert call("GET", "/v1/models/echo").json()["model_version_status"][0]["state"] == "AVAILABLE"
    assert call("GET", "/v1/models/echo/metadata").json()["model_spec"]["version"] == "1"
    assert call("POST", "/v1/models/echo:predict", json={"instances": [1], "inputs": [1]}).status_code == 400

def test_photographs_in_base64(call, classifier, photos):
    encoded = [{"b64": base64.b64encode(p.read_bytes()).decode()} for p in photos[:3]]
    want = [classifier.predict(p) for p in photos[:3]]
    for instances in (encoded, [{"image_bytes": x} for x in encoded]):
        assert call("POST", "/v1/models/classifier:predict", json={"instances": instances}).json() == {"predictions": want}
    r = call("POST", "/v1/models/classifier:predict", json={"instances": [encoded[0], {"b64": "AAAA"}]})
    assert r.status_code == 400 and r.json()["error"].startswith("instance 1: DecodeError")

# Its life

def test_it_ends_with_its_server(tmp_path):
    from zztoolkit.serving.torchserve.server import LocalServer
    with LocalServer() as server:
        gateway = Gateway(server).start()
        process = gateway.process
        assert "HTTP" in repr(gateway)
    assert process.poll() is not None and not gateway.running and repr(gateway) == "Gateway, stopped"

def test_a_gateway_that_was_killed_does_not_keep_its_server(server):
    gateway = Gateway(server).start()
    gateway.process.kill()
    gateway.process.wait()
    for stop in reversed(server.before_stop.copy()): stop()
    assert not gateway.running and gateway.start().running      # another one
    gateway.stop()

def test_a_port_that_is_taken(server, monkeypatch):
    from zztoolkit.gateway import gateway as module
    free, taken = module.free_ports(1), socket.create_server(("127.0.0.1", 0))
    for ports in ([taken.getsockname()[1], *free], [*free, taken.getsockname()[1]]):
        monkeypatch.setattr(module, "free_ports", lambda n: ports)
        gateway = Gateway(server)
        with pytest.raises(ToolkitError, match="did not start"): gateway.start()
        assert not gateway.running
    taken.close()

def test_in_front_of_mosec(tmp_path):
    "The same protocols, of which mosec speaks none; a model is announced, and so is its next version"
    pytest.importorskip("mosec")
    from zztoolkit.serving.server import make_server
    from zztoolkit.serving.torchserve.config import Settings
    def serve(n: int):
        file = tmp_path / "echo.py"
        file.write_text(version(n))
        deploy(server, pack("echo", file, version=str(n), store=tmp_path))
    with make_server("mosec", Settings()) as server, Gateway(server) as gateway:
        http = httpx.Client(base_url=gateway.url, headers=gateway.headers, trust_env=False, timeout=30)
        assert http.get("/v2/models/echo").status_code == 404
        serve(1)
        assert http.post("/v1/models/echo:predict", json={"instances": [{"a": 1}]}).json() == {"predictions": [{"got": {"a": 1}, "version": 1}]}
        serve(2)
        with grpcclient.InferenceServerClient(gateway.grpc_address) as client:
            tensor = grpcclient.InferInput("request", [2], "BYTES")
            tensor.set_data_from_numpy(as_bytes([b"bad", b"{}"]))
            result = client.infer("echo", [tensor], model_version="2", headers=dict(gateway.headers))
        assert result.as_numpy("status").tolist() == [400, 200] and responses(result)[1]["version"] == 2
        wait_until(lambda: http.get("/v2/models/echo").json()["versions"] == ["2"])
        assert http.get("/v2", headers={"authorization": "Bearer wrong"}).status_code == 401
        http.close()

def test_without_its_packages(server, monkeypatch):
    from zztoolkit.gateway import gateway as module
    monkeypatch.setattr(module, "PACKAGES", ("no_such_package",))
    with pytest.raises(ToolkitError, match=r"pip install 'zztoolkit\[gateway\]'"): Gateway(server).start()
