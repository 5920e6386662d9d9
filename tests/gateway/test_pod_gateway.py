"The gateway in a pod: the proxy's port, tokens and certificate, for HTTP and gRPC."
from __future__ import annotations

import json, subprocess, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc, httpx, numpy as np, pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from tritonclient.utils import InferenceServerException

from conftest import missing
from support.pods import echo, Pod, wait_until

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-shop-1"
HEADERS = {"authorization": f"Bearer {TOKEN}"}

@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    if not Path("/usr/sbin/haproxy").exists(): missing("no haproxy: apt install haproxy")
    home = tmp_path_factory.mktemp("gateway")
    echo(home / "store", batchSize=4, maxBatchDelay=1)
    (home / "tokens").write_text(TOKEN)
    (home / "tls").mkdir()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-keyout", home / "tls" / "tls.key", "-out", home / "tls" / "tls.crt"], check=True, capture_output=True)
    return home

@pytest.fixture(scope="module", params=["plain", "tls"])
def pod(request, home, tmp_path_factory):
    options = ["--tls", home / "tls"] if request.param == "tls" else []
    with Pod(tmp_path_factory.mktemp("log") / "log", home / "store", "--tokens", home / "tokens", "--gateway", "--endpoint-wait", "2", *options) as pod:
        pod.tls, pod.certificate = request.param == "tls", (home / "tls" / "tls.crt").read_bytes()
        yield pod.wait_ready()

def grpc_client(pod: Pod) -> grpcclient.InferenceServerClient:
    certificate = {"ssl": True, "root_certificates": str(pod.log.parent / "ca.crt")} if pod.tls else {}
    if pod.tls: (pod.log.parent / "ca.crt").write_bytes(pod.certificate)
    return grpcclient.InferenceServerClient(f"127.0.0.1:{pod.ports[0]}", **certificate)

def health(pod: Pod, name: str = "") -> int:
    "As a probe asks: without a token"
    address = f"127.0.0.1:{pod.ports[0]}"
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(pod.certificate)) if pod.tls else grpc.insecure_channel(address) as channel:
        return HealthStub(channel).Check(HealthCheckRequest(service=name), timeout=10).status

def ask(client, module, bodies: list[dict]) -> list[dict]:
    tensor = module.InferInput("request", [len(bodies)], "BYTES")
    tensor.set_data_from_numpy(np.array([json.dumps(b).encode() for b in bodies], dtype=object))
    return [json.loads(x) for x in client.infer("echo", [tensor], headers=dict(HEADERS)).as_numpy("response")]

def test_grpc_passes_the_proxy_with_the_same_token(pod):
    with grpc_client(pod) as client:
        assert client.is_server_ready(headers=HEADERS) and client.is_model_ready("echo", headers=HEADERS)
        assert ask(client, grpcclient, [{"x": 1}, {"x": 2}]) == [{"x": 1}, {"x": 2}]
        with pytest.raises(InferenceServerException, match="401") as e: client.get_model_metadata("echo", headers={"authorization": "Bearer wrong"})
        assert e.value.status() == "StatusCode.UNAUTHENTICATED"

def test_http_passes_the_proxy(pod, home):
    address, options = f"127.0.0.1:{pod.ports[0]}", {"ssl": True, "ssl_options": {"ca_certs": str(home / "tls" / "tls.crt")}} if pod.tls else {}
    with httpclient.InferenceServerClient(address, **options) as client:
        assert ask(client, httpclient, [{"x": 1}, {"x": 2}]) == [{"x": 1}, {"x": 2}]
        with pytest.raises(InferenceServerException, match="give one token") as e: client.get_model_metadata("echo")
        assert e.value.status() == "401"
    with httpx.Client(base_url=f"{'https' if pod.tls else 'http'}://{address}", headers=HEADERS, trust_env=False, verify=False) as http:
        assert http.post("/v1/models/echo:predict", json={"instances": [{"x": 1}, {"x": 2}]}).json() == {"predictions": [{"x": 1}, {"x": 2}]}
        assert http.post("/predictions/echo", json={"x": 1}).json() == {"x": 1}
        assert http.get("/v2/models/nowhere").status_code == 404

def test_health_needs_no_token(pod):
    assert health(pod) == health(pod, "echo") == HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as e: health(pod, "nowhere")
    assert e.value.code() == grpc.StatusCode.NOT_FOUND
    scheme = "https" if pod.tls else "http"
    assert httpx.post(f"{scheme}://127.0.0.1:{pod.ports[0]}/grpc.health.v1.Health/Check", content=b"{}", verify=False, trust_env=False).status_code == 401

def test_the_models_name_counts_whatever_the_protocol(pod):
    def count() -> float:
        lines = [line for line in pod.get("/metrics").text.splitlines() if line.startswith('zz_request_seconds_count{model_name="echo"}')]
        return float(lines[0].rsplit(" ", 1)[1])
    before = count()
    with httpx.Client(base_url=f"{'https' if pod.tls else 'http'}://127.0.0.1:{pod.ports[0]}", headers=HEADERS, trust_env=False, verify=False) as http:
        http.post("/v1/models/echo:predict", json={"instances": [{"x": 1}]})
        http.post("/v2/models/echo/infer", json={"inputs": [{"name": "request", "datatype": "BYTES", "shape": [1], "data": ["{}"]}]})
    wait_until(lambda: count() == before + 2, 5)
    with grpc_client(pod) as client:
        assert ask(client, grpcclient, [{"x": 1}]) == [{"x": 1}]
        with pytest.raises(InferenceServerException): client.infer("echo", [], headers=dict(HEADERS))      # an error does not count
        assert ask(client, grpcclient, [{"x": 2}]) == [{"x": 2}]
    wait_until(lambda: count() >= before + 4, 5)
    assert count() == before + 4

def test_a_drain_loses_no_call(pod):
    "Calls over gRPC go on until the pod accepts no more; what is in flight then is answered. The pod is gone afterwards"
    with grpc_client(pod) as client, ThreadPoolExecutor(4) as pool:
        assert ask(client, grpcclient, [{"k": 0}])
        pod.process.terminate()
        accepted = time.monotonic() + 1.4
        wait_until(lambda: health(pod) == health(pod, "echo") == HealthCheckResponse.NOT_SERVING, 1.2)
        n = 0
        while time.monotonic() < accepted: n += len(ask(client, grpcclient, [{"k": n}]))
        slow = [pool.submit(ask, client, grpcclient, [{"sleep": 2, "k": k}]) for k in range(2)]     # in flight when the door closes
        assert [s.result()[0]["k"] for s in slow] == [0, 1] and n > 10
    assert pod.process.wait(40) == 0 and "every request was answered" in pod.said()
