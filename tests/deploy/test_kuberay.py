"A release as a RayService: by KubeRay's and Kubernetes' schemas, and its Serve configuration on a real Ray"
from __future__ import annotations

import json, subprocess
from pathlib import Path

import httpx, jsonschema, pytest, yaml

from zztoolkit.archive.packing import pack
from zztoolkit.deploy.checks import newest_minors, schema_errors
from zztoolkit.deploy.kuberay import ClusterOptions, ray_service, serve_config
from zztoolkit.errors import ToolkitError
from zztoolkit.system import find_program, wait_until

CRD = json.loads((Path(__file__).parent.parent / "support" / "crds" / "RayService.json").read_text())
SHOUT = """
from zztoolkit import Handler, RequestError
class Shout(Handler):
    def preprocess(self, requests): return [self.check(x) for x in requests]
    def check(self, x):
        if not isinstance(x, str): raise RequestError("send text")
        return x
    def inference(self, xs): return xs
    def postprocess(self, xs): return [f"{x.upper()} VERSION" for x in xs]
"""

def pack_shout(folder: Path, version: str = "1", **config):
    file = folder / "shout.py"
    file.write_text(SHOUT.replace("VERSION", version))
    return pack("shout", file, version=version, store=folder, example="hi", **config)

def pods(service: dict) -> list[dict]:
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [dict(apiVersion="v1", kind="Pod", metadata={"name": "x"}, spec=g["template"]["spec"]) for g in groups]

@pytest.fixture
def service(tmp_path): return ray_service([pack_shout(tmp_path, workers=2, max_workers=5)], ClusterOptions("shop", "registry/shop@sha256:" + "a" * 64))


def test_valid(service):
    "KubeRay's schema, in which every field is known, and Kubernetes' for the pods"
    jsonschema.validate(service, CRD)
    for version in newest_minors(): assert schema_errors(pods(service), version) == ([], set())

def test_validation_can_fail(service):
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"): jsonschema.validate(service, CRD)
    pods(service)[0]["spec"]["containers"][0]["livenesProbe"] = {}
    assert "livenesProbe" in schema_errors(pods(service), newest_minors()[-1])[0][0]

def test_scaling(service):
    "Replicas between the archive's numbers of workers; pods for the most of them; none that serves on the head"
    cluster, (app,) = service["spec"]["rayClusterConfig"], yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    deployment, = app["deployments"]
    assert (deployment["autoscaling_config"]["min_replicas"], deployment["autoscaling_config"]["max_replicas"]) == (2, 5)
    assert cluster["enableInTreeAutoscaling"] and cluster["workerGroupSpecs"][0]["maxReplicas"] == 3
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"} and service["spec"]["excludeHeadPodFromServeSvc"]

@pytest.mark.slow
def test_two_versions(tmp_path):
    mars = [pack_shout(tmp_path, v) for v in ("1", "2")]
    with pytest.raises(ToolkitError, match="two versions of a model"): serve_config(mars)

@pytest.mark.slow
def test_render(tmp_path):
    "`zz deploy render --kuberay` writes it beside the chart; rendered without, it is gone"
    mar, folder = pack_shout(tmp_path), tmp_path / "release"
    command = [find_program("zz"), "deploy", "render", str(mar.path), "--to", str(folder), "--image", "registry/shop:1"]
    said = subprocess.run([*command, "--kuberay"], capture_output=True, text=True, check=True).stdout
    service = yaml.safe_load((folder / "rayservice.yaml").read_text())
    jsonschema.validate(service, CRD)
    assert "rayservice.yaml" in said and service["metadata"]["name"] == "shout"
    assert mar.digest in service["spec"]["serveConfigV2"] and "kind: ray" in (folder / "values.yaml").read_text()
    subprocess.run(command, capture_output=True, check=True)
    assert not (folder / "rayservice.yaml").exists()


@pytest.mark.ray
def test_on_a_real_ray(tmp_path):
    "`serve deploy` of the same configuration: predictions with the token, the next archive in place of the first, another digest refused"
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    from support.ray_cluster import ray_cluster
    mar = pack_shout(tmp_path)
    (tmp_path / f"shout-1-{mar.digest[:12]}.mar").write_bytes(mar.path.read_bytes())
    config = serve_config([mar], str(tmp_path))
    file = tmp_path / "serve.yaml"

    with ray_cluster() as cluster, httpx.Client(base_url=f"http://127.0.0.1:{cluster.http}", trust_env=False) as client:
        def deploy(config: dict):
            file.write_text(yaml.safe_dump(config | {"http_options": {"host": "127.0.0.1", "port": cluster.http}}))
            cluster.serve("deploy", str(file))

        def shout(text: str, token: str = "open sesame") -> httpx.Response:
            headers = {"Content-Type": "text/plain", "Authorization": f"Bearer {token}"}
            try: return client.post("/predictions/shout", content=text, headers=headers)
            except httpx.HTTPError as e: return httpx.Response(599, text=str(e))

        def status() -> dict: return next(iter(yaml.safe_load(cluster.serve("status"))["applications"].values()))

        deploy(config)
        assert wait_until(lambda: shout("hi").text == "HI 1", 180, every=0.5), cluster.serve("status")
        assert shout("hi", token="guessed").json()["type"] == "InvalidKeyException"
        assert client.post("/predictions/shout", json=7, headers={"Authorization": "Bearer open sesame"}).json()["error"]["message"] == "send text"

        mar = pack_shout(tmp_path, "2")
        (tmp_path / f"shout-2-{mar.digest[:12]}.mar").write_bytes(mar.path.read_bytes())
        deploy(serve_config([mar], str(tmp_path)))
        assert wait_until(lambda: shout("hi").text == "HI 2", 180, every=0.5), cluster.serve("status")

        wrong = serve_config([mar], str(tmp_path))
        wrong["applications"][0]["args"]["sha256"] = "0" * 64
        deploy(wrong)
        assert wait_until(lambda: status()["status"] == "DEPLOY_FAILED", 120, every=0.5)
        assert "is not the archive that was packed" in status()["message"] and shout("hi").text == "HI 2"
