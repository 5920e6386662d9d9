"The OpenAPI document of the Open Inference Protocol that MLServer publishes, against the gateway: requests that schemathesis makes up."
from __future__ import annotations

import json, subprocess, sys, zipfile
from pathlib import Path

import pytest

from conftest import missing
from zztoolkit.archive.packing import pack
from zztoolkit.gateway import Gateway
from zztoolkit.serving.rollout import deploy

ECHO = """
from zztoolkit import Handler
class Echo(Handler):
    def preprocess(self, requests): return requests
    def inference(self, xs): return xs
    def postprocess(self, xs): return [bytes(x) if isinstance(x, bytearray) else x for x in xs]
"""
NOT_OURS = ("infer_stream", "generate", "generate_stream")      # MLServer's own

@pytest.fixture(scope="module")
def document(tmp_path_factory) -> Path:
    "From MLServer's wheel, which is never installed; the type `bytes`, which JSON has not, is a string"
    home = tmp_path_factory.mktemp("openapi")
    done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "mlserver==1.7.1", "-d", str(home)], capture_output=True)
    if done.returncode: missing("pip could not download MLServer's OpenAPI document")
    with zipfile.ZipFile(next(home.glob("*.whl"))) as z: api = json.loads(z.read("mlserver/rest/openapi/dataplane.json"))
    api["paths"] = {p: v for p, v in api["paths"].items() if not p.endswith(NOT_OURS)}
    api["components"]["schemas"]["TensorData"] = {"oneOf": [{"type": "array", "items": {}}, {"type": "string"}]}
    for path in api["paths"].values():
        for p in path.get("parameters", []): p["schema"]["enum"] = ["echo", "nowhere"] if p["name"] == "model_name" else ["1", "2"]
    file = home / "dataplane.json"
    file.write_text(json.dumps(api))
    return file

@pytest.mark.slow
def test_no_request_is_a_failure_of_ours(server, document, tmp_path):
    st = Path(sys.executable).with_name("st")
    if not st.exists(): missing("schemathesis is not installed")
    file = tmp_path / "echo.py"
    file.write_text(ECHO)
    endpoint = deploy(server, pack("echo", file, version="1", store=tmp_path))
    with Gateway(server) as gateway:
        command = [st, "run", document, "--url", gateway.url, "-H", f"Authorization: {gateway.headers['authorization']}", "--phases", "coverage,fuzzing",
                   "--checks", "not_a_server_error,response_schema_conformance", "--max-examples", "10", "--seed", "1", "--generation-database", "none"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    endpoint.remove()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-500:]
    assert "Tested: 9" in done.stdout
