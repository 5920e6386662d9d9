"What `zz deploy` renders: fit for Kubernetes in every shape, refused where it is wrong, and every alert and panel asked of a real Prometheus."
import copy, hashlib, json, math, os, re, shutil, ssl, subprocess, sys, threading, time
from pathlib import Path

import httpx, jsonschema, promql_parser, pytest, yaml

from support.alerts import ALERTS, PODS, rule_tests
from conftest import ROOT, missing
from support.pods import SERVER, Pod, wait_until
from support.watching import Prometheus, serve_text
from zztoolkit.deploy.checks import _check_archives, _check_server, check, newest_minors, schema_errors
from zztoolkit.deploy.image import dockerfile, needed_extras
from zztoolkit.deploy.helm import Release, helm, objects_in
from zztoolkit.deploy.releasing import apply, diff
from zztoolkit.deploy.rendering import render, archive_set_digest
from zztoolkit.deploy.values import resources, stored_name
from zztoolkit.archive.packing import pack
from zztoolkit.archive.reconfigure import with_config
from zztoolkit.errors import ToolkitError
from zztoolkit.folders import temporary_folder
from zztoolkit.system import sha256
from zztoolkit.deploy.dashboard import dashboard_json, panels
from zztoolkit.serving.torchserve.config import free_ports
from zztoolkit.archive.signing import new_key, sign
from zztoolkit.serving.server import SERVERS

CHART, HERE = ROOT / "zztoolkit" / "deploy" / "chart", ROOT / "tests" / "support"
DIGEST, OTHER = "sha256:" + "0123456789abcdef" * 4, "sha256:" + "fedcba9876543210" * 4
MODELS = [dict(name="classifier", version=v, file=f"classifier-{v}-{c * 12}.mar", sha256=c * 64, workers=2, batchSize=8, maxBatchDelay=20) for v, c in (("1.0", "a"), ("1.1", "b"))]
LLM = dict(name="assistant", volume=dict(persistentVolumeClaim=dict(claimName="weights")), file="assistant.gguf", sha256="c" * 64, engine="openvino")
BASE = dict(image=dict(repository="registry.example/zz", digest=DIGEST), models=MODELS[:1], auth=dict(existingSecret="shop-tokens"))
CASES = dict(
    cpu={},
    mosec=dict(server=dict(kind="mosec")),
    on_demand=dict(server=dict(kind="mosec", memory="2GB")),
    gpu=dict(gpu=dict(count=1, products=["NVIDIA-A100-SXM4-80GB"]), strategy=dict(maxUnavailable=1, maxSurge=0), podDisruptionBudget=dict(maxUnavailable="25%")),
    mig=dict(gpu=dict(count=1, resource="nvidia.com/mig-1g.10gb", runtimeClassName="nvidia"), topologySpread=dict(whenUnsatisfiable="DoNotSchedule")),
    hpa=dict(autoscaling=dict(kind="hpa")),
    keda=dict(autoscaling=dict(kind="keda"), monitoring=dict(serviceMonitor=dict(enabled=True))),
    tls=dict(tls=dict(enabled=True, certManager=dict(enabled=True, issuer=dict(name="ours"), dnsNames=["models.example"])), service=dict(port=443)),
    canary=dict(route=dict(enabled=True, parentRefs=[dict(name="public", namespace="gateways")], hostnames=["models.example"], canary=dict(service="film-canary", weight=10))),
    gateway_authenticates=dict(auth=dict(enabled=False, existingSecret=""), networkPolicy=dict(clients=[dict(namespaceSelector=dict(matchLabels=dict(name="gateways")))])),
    two_versions=dict(models=MODELS, signatures=dict(existingConfigMap="release-keys")),
    monitored=dict(monitoring=dict(serviceMonitor=dict(enabled=True, labels=dict(release="prometheus")), rules=dict(enabled=True), dashboard=dict(enabled=True))),
    kserve=dict(output="kserve", gpu=dict(count=1)),
    kserve_scaled=dict(output="kserve", autoscaling=dict(kind="hpa"), store=dict(kind="pvc")),
    pvc=dict(store=dict(kind="pvc", pvc=dict(storageClass="nfs"))),
    own_claim=dict(store=dict(kind="pvc", pvc=dict(existingClaim="models", upload=dict(enabled=False)))),
    s3=dict(store=dict(kind="s3", s3=dict(uri="s3://models/film", endpoint="http://minio.storage:9000", existingSecret="minio", image=f"registry.example/aws-cli@{OTHER}"))),
    oci=dict(store=dict(kind="oci", image=f"registry.example/film-models@{OTHER}")),
    image_volume=dict(store=dict(kind="oci", image=f"registry.example/film-models@{OTHER}", oci=dict(mount="volume"))),
    llm=dict(llm=LLM, autoscaling=dict(kind="keda"), monitoring=dict(serviceMonitor=dict(enabled=True), rules=dict(enabled=True))),
    llm_alone=dict(models=[], llm=LLM | dict(volume=dict(image=dict(reference=f"registry.example/weights@{OTHER}")), file="")),
    llm_alone_keda=dict(models=[], llm=LLM, autoscaling=dict(kind="keda"), monitoring=dict(serviceMonitor=dict(enabled=True))),
    vllm=dict(models=[], llm=LLM | dict(engine="vllm", file="qwen", args=["--tensor-parallel-size", "2"]), gpu=dict(count=2)),
    vllm_kserve=dict(models=[], llm=LLM | dict(engine="vllm"), gpu=dict(count=1), output="kserve", tls=dict(enabled=True, existingSecret="shop-tls")))


def over(base: dict, more: dict) -> dict:
    "`more` laid over `base`, as helm does it"
    made = copy.deepcopy(base)
    for k, v in more.items(): made[k] = over(made.get(k, {}), v) if isinstance(v, dict) else v
    return made

def template(tmp: Path, more: dict, *args: str) -> list[dict]:
    (file := tmp / "values.yaml").write_text(yaml.safe_dump(over(BASE, more)))
    return objects_in(helm("template", "film", str(CHART), "-n", "shop", "-f", str(file), *args))

def of_kind(objects: list[dict], kind: str) -> list[dict]: return [o for o in objects if o["kind"] == kind]

def pod_specs(objects: list[dict]) -> list[dict]:
    "Of everything that makes pods"
    spec = {"Deployment": lambda o: o["spec"]["template"]["spec"], "Job": lambda o: o["spec"]["template"]["spec"], "Pod": lambda o: o["spec"], "InferenceService": lambda o: o["spec"]["predictor"]}
    return [spec[o["kind"]](o) for o in objects if o["kind"] in spec]

def containers(pod: dict) -> list[dict]: return pod.get("initContainers", []) + pod["containers"]

def crd(kind: str) -> dict: return json.loads((HERE / "crds" / f"{kind}.json").read_text())

def as_deployment(service: dict) -> dict:
    "The pod of an InferenceService, without what only KServe knows, where Kubernetes' schema can look at it"
    pod = {k: v for k, v in service["spec"]["predictor"].items() if k not in ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "deploymentStrategy", "labels")}
    return dict(apiVersion="apps/v1", kind="Deployment", metadata=service["metadata"], spec=dict(selector=dict(matchLabels={}), template=dict(spec=pod)))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_valid(case, tmp_path):
    "Every document fits the schemas of the three newest Kubernetes, strictly; those of other makers theirs; helm lints it"
    objects = template(tmp_path, CASES[case])
    for version in newest_minors():
        wrong, unknown = schema_errors(objects, version)
        assert not wrong, (version, wrong)
        assert unknown <= {p.stem for p in (HERE / "crds").glob("*.json")}, unknown
        assert not (ks := schema_errors([as_deployment(o) for o in of_kind(objects, "InferenceService")], version)[0]), ks
    for o in objects:
        if o["kind"] in unknown: jsonschema.validate(o, crd(o["kind"]))
    assert "1 chart(s) linted, 0 chart(s) failed" in helm("lint", "--strict", str(CHART), "-f", str(tmp_path / "values.yaml"))

def test_validation_can_fail(tmp_path):
    "A wrong field of Kubernetes' and one of another maker's are each found"
    objects = template(tmp_path, over(CASES["keda"], CASES["kserve"]))
    deployment, scaled = (of_kind(template(tmp_path, CASES["keda"]), k)[0] for k in ("Deployment", "ScaledObject"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    assert "readynessProbe" in schema_errors([deployment], newest_minors()[-1])[0][0]
    scaled["spec"]["minReplicas"] = 2
    with pytest.raises(jsonschema.ValidationError, match="minReplicas"): jsonschema.validate(scaled, crd("ScaledObject"))
    service = of_kind(objects, "InferenceService")[0]
    service["spec"]["predictor"]["replicas"] = 2
    with pytest.raises(jsonschema.ValidationError, match="replicas"): jsonschema.validate(service, crd("InferenceService"))

@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_safe_by_default(case, tmp_path):
    "In every shape: no root, nothing writable but what must be, no token of Kubernetes, no way to management, a measured end"
    objects = template(tmp_path, CASES[case])
    for pod in pod_specs(objects):
        assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsUser"] == 10001
        for c in containers(pod):
            s = c["securityContext"]
            assert s["readOnlyRootFilesystem"] and s["runAsNonRoot"] and s["allowPrivilegeEscalation"] is False and s["capabilities"] == {"drop": ["ALL"]} and s["seccompProfile"] == {"type": "RuntimeDefault"}
            assert c["resources"]["limits"]["memory"] and "@sha256:" in c["image"]
            assert not [e for e in c.get("env", []) if re.search("TOKEN|KEY|SECRET|PASS", e["name"])]
            for m in c["volumeMounts"]: assert m["mountPath"] in ("/work", "/tmp", "/dev/shm", "/store") or m["readOnly"]
    ports = [p for s in of_kind(objects, "Service") for p in s["spec"]["ports"]]
    assert not [p for p in ports if "8081" in (str(p["port"]), str(p["targetPort"]))] and not [c for p in pod_specs(objects) for c in containers(p) if any(q["containerPort"] == 8081 for q in c.get("ports", []))]
    [pod] = [p for p in pod_specs(objects) if "terminationGracePeriodSeconds" in p]
    assert pod["terminationGracePeriodSeconds"] == 10 + (120 if "llm" in CASES[case] else 30) + 2 + 20
    [server] = pod["containers"]
    assert {server[f"{k}Probe"]["httpGet"]["path"] for k in ("startup", "readiness")} == {"/readyz"} and server["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert of_kind(objects, "NetworkPolicy") and of_kind(objects, "PodDisruptionBudget")

def server_of(objects: list[dict]) -> dict: return next(c for p in pod_specs(objects) for c in p["containers"] if c["name"] in ("server", "kserve-container"))

@pytest.mark.slow
def test_what_each_shape_says(tmp_path):
    render = lambda case: template(tmp_path, CASES[case])
    assert server_of(render("mig"))["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == 1
    gpu = of_kind(render("gpu"), "Deployment")[0]["spec"]
    assert gpu["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0} and gpu["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu" and gpu["replicas"] == 2
    assert "replicas" not in of_kind(render("keda"), "Deployment")[0]["spec"]      # the autoscaler's to say
    trigger = of_kind(render("keda"), "ScaledObject")[0]["spec"]["triggers"][0]
    assert trigger["metricType"] == "Value" and trigger["metadata"]["threshold"] == "50" and promql_parser.parse(trigger["metadata"]["query"])
    route = of_kind(render("canary"), "HTTPRoute")[0]["spec"]["rules"][0]
    assert [(b["name"], b["weight"]) for b in route["backendRefs"]] == [("film-zztoolkit", 90), ("film-canary", 10)]
    two = server_of(render("two_versions"))["args"]
    assert "--models=" + ",".join(f"classifier={m['file']}@sha256:{m['sha256']}" for m in MODELS) in two and "--keys=/etc/zztoolkit/keys" in two
    assert "--no-token-auth" in server_of(render("gateway_authenticates"))["args"] and "--tls=/etc/zztoolkit/tls" in server_of(render("tls"))["args"]
    assert of_kind(render("tls"), "Service")[1]["spec"]["ports"][0] == {"name": "https", "port": 443, "targetPort": "http"}
    assert not of_kind(render("kserve"), "Deployment") and not [s for s in of_kind(render("kserve"), "Service") if not s["metadata"]["name"].endswith("-metrics")]
    assert of_kind(render("cpu"), "NetworkPolicy")[0]["spec"]["egress"] == []
    assert len(of_kind(template(tmp_path, dict(networkPolicy=dict(monitoring=[]))), "NetworkPolicy")[0]["spec"]["ingress"]) == 1     # nobody scrapes, rather than everybody
    assert of_kind(render("s3"), "NetworkPolicy")[0]["spec"]["egress"][1] == {"ports": [{"port": 9000}]}
    assert of_kind(render("pvc"), "Deployment")[0]["spec"]["template"]["metadata"]["annotations"]["zztoolkit/models"] == archive_set_digest(MODELS[:1])     # chart and library name a set alike
    assert "mountPath: /models" in yaml.safe_dump(server_of(render("pvc"))["volumeMounts"])
    watched, monitor = render("monitored"), of_kind(render("monitored"), "ServiceMonitor")[0]["spec"]
    [scraped] = [o for o in of_kind(watched, "Service") if monitor["selector"]["matchLabels"].items() <= o["metadata"]["labels"].items()]
    assert scraped["spec"]["clusterIP"] == "None" and {e["port"] for e in monitor["endpoints"]} <= {q["name"] for q in scraped["spec"]["ports"]}
    assert f'service="{scraped["metadata"]["name"]}"' in yaml.safe_dump(of_kind(watched, "PrometheusRule"))     # the label that the operator gives what it scrapes there
    pods = of_kind(watched, "Deployment")[0]["spec"]["template"]["metadata"]["labels"]
    for chosen in (scraped["spec"]["selector"], of_kind(watched, "PodDisruptionBudget")[0]["spec"]["selector"]["matchLabels"]): assert chosen.items() <= pods.items()
    assert not scraped["spec"]["selector"].items() <= of_kind(watched, "Pod")[0]["metadata"]["labels"].items()      # helm test's pod is no replica
    moved = [of_kind(template(tmp_path, dict(models=m)), "Deployment")[0]["spec"]["template"] for m in (MODELS[:1], MODELS[1:])]
    assert moved[0]["metadata"]["annotations"] != moved[1]["metadata"]["annotations"]

@pytest.mark.slow
def test_zz_run_takes_what_the_chart_says(tmp_path):
    "Every option of the pods' command line, in every shape, is one that `zz run` has"
    import typer
    from zztoolkit.cli.main import app
    command = typer.main.get_command(app).commands["run"]
    for case in CASES:
        given = command.make_context("run", list(server_of(template(tmp_path, CASES[case]))["args"])).params
        seconds = 152 if "llm" in CASES[case] else 62
        assert str(given["store"]) == "/models" and given["endpoint_wait"] + given["drain_timeout"] + 22 == seconds
        assert given["models"].startswith("classifier=") or CASES[case]["models"] == [] and given["llm"].startswith("assistant=/llm")

def test_a_language_model(tmp_path):
    "Its weights by digest from a volume, a GPU for vLLM, time to load and to end, and replicas by who waits"
    render = lambda case: template(tmp_path, CASES[case])
    beside, alone, vllm = (server_of(render(case)) for case in ("llm", "llm_alone", "vllm"))
    assert f"--llm=assistant=/llm/assistant.gguf@sha256:{'c' * 64}" in beside["args"] and [a for a in beside["args"] if a.startswith("--models=classifier")]
    assert f"--llm=assistant=/llm@sha256:{'c' * 64}" in alone["args"] and "--models=" in alone["args"]
    assert [a for a in vllm["args"] if a.startswith("--llm-arg")] == ["--llm-arg=--tensor-parallel-size", "--llm-arg=2"] and "--llm-engine=vllm" in vllm["args"] and vllm["resources"]["limits"]["nvidia.com/gpu"] == 2
    for server in (beside, alone, vllm):
        assert {"name": "llm", "mountPath": "/llm", "readOnly": True} in server["volumeMounts"]
        assert server["startupProbe"]["failureThreshold"] * 5 >= 1800 and "--startup-timeout=1800" in server["args"] and "--drain-timeout=120" in server["args"]
    volumes = {case: next(v for p in pod_specs(render(case)) for v in p.get("volumes", []) if v["name"] == "llm") for case in ("llm", "llm_alone")}
    assert volumes["llm"]["persistentVolumeClaim"] == {"claimName": "weights"} and volumes["llm_alone"]["image"]["reference"].endswith(OTHER)
    both, [waiting] = (of_kind(render(case), "ScaledObject")[0]["spec"]["triggers"] for case in ("llm", "llm_alone_keda"))
    assert both[1] == waiting and (waiting["metricType"], waiting["metadata"]["threshold"]) == ("AverageValue", "4") and 'model_name="assistant"' in waiting["metadata"]["query"]
    assert promql_parser.parse(waiting["metadata"]["query"])
    assert {"name": "LLM", "value": "assistant"} in of_kind(render("llm"), "Pod")[0]["spec"]["containers"][0]["env"]
    assert "--llm" not in str(server_of(render("cpu"))["args"])

def test_handlers_see_the_environment_that_the_values_name(tmp_path):
    "`zz run` forgets all variables but the usual ones and those in ZZ_ENV"
    env = server_of(template(tmp_path, dict(server=dict(env=[dict(name="SHOP_LIMIT", value="7"), dict(name="REGION", value="eu")]))))["env"]
    assert {e["name"]: e["value"] for e in env} == {"HOME": "/work", "ZZ_ENV": "SHOP_LIMIT,REGION", "SHOP_LIMIT": "7", "REGION": "eu"}

@pytest.mark.slow
@pytest.mark.parametrize("wrong, says", [
    ({"server": {"drain": 3}}, "Additional property drain is not allowed"),
    ({"store": {"kind": "ftp"}}, 'store.kind must be one of the following: "image", "pvc", "s3", "oci"'),
    ({"store": {"kind": "s3", "s3": {"uri": "s3://b"}}}, "store.s3.image"),
    ({"store": {"kind": "oci", "image": "models:latest"}}, "store.image"),
    ({"store": {"kind": "oci"}}, "--models-image"),
    ({"store": {"image": f"models@{OTHER}"}}, "store.kind is oci or pvc"),
    ({"models": [MODELS[0] | {"sha256": "abc"}]}, "models.0.sha256"),
    ({"models": [MODELS[0] | {"file": "../../etc/x.mar"}]}, "models.0.file"),
    ({"models": []}, "zz deploy render"),
    ({"models": [], "llm": LLM, "store": {"kind": "pvc"}}, "nothing comes from there"),
    ({"llm": {"name": "assistant", "sha256": "c" * 64}}, "llm.volume"),
    ({"llm": LLM | {"sha256": ""}}, "zz deploy render --llm"),
    ({"llm": LLM | {"sha256": "abc"}}, "llm.sha256"),
    ({"llm": LLM | {"engine": "vllm"}}, "set gpu.count"),
    ({"llm": LLM | {"engine": "llama.cpp"}}, "llm.engine"),
    ({"llm": LLM | {"args": ["--dtype"]}}, "llm.args are vLLM's"),
    ({"llm": LLM | {"file": "../../etc"}}, "llm.file"),
    ({"llm": LLM | {"volume": {"hostPath": {"path": "/"}}}}, "Additional property hostPath is not allowed"),
    ({"llm": LLM | {"volume": {"image": {"reference": "weights:latest"}}}}, "llm.volume.image.reference"),
    ({"server": {"kind": "mosec"}, "models": MODELS}, "mosec serves one version of a model"),
    ({"server": {"memory": "2GB"}}, "server.kind mosec or ray loads them on demand"),
    ({"server": {"kind": "mosec", "memory": "much"}}, "server.memory"),
    ({"server": {"kind": "nosuch"}}, "server.kind"),
    ({"replicas": "two"}, "Expected: integer, given: string"),
    ({"image": {"digest": "latest"}}, "image.digest"),
    ({"auth": {"existingSecret": ""}}, "one token a line"),
    ({"auth": {"tokens": ["hunter2"]}}, "Additional property tokens is not allowed"),     # secrets have no place in values
    ({"tls": {"enabled": True}}, "tls.existingSecret"),
    ({"strategy": {"maxSurge": 0}}, "no pod could ever be replaced"),
    ({"route": {"enabled": True}}, "name the Gateway"),
    ({"route": {"canary": {"weight": 101}}}, "less than or equal to 100"),
    ({"route": {"canary": {"weight": 5}}}, "Service of the canary release"),
    ({"autoscaling": {"kind": "keda"}}, "monitoring.serviceMonitor.enabled"),
    ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, "tls.certManager.issuer.name"),
    ({"autoscaling": {"minReplicas": 9}}, "minReplicas is more than maxReplicas"),
    ({"monitoring": {"objectives": {"availability": 99.9}}}, "availability")])
def test_wrong_values_are_refused(wrong, says, tmp_path):
    with pytest.raises(ToolkitError) as e: template(tmp_path, wrong)
    assert says in str(e.value), e.value

def test_chart_by_itself():
    "Without values it lints, and its defaults fit its own schema"
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))
    values, schema = yaml.safe_load((CHART / "values.yaml").read_text()), json.loads((CHART / "values.schema.json").read_text())
    jsonschema.validate(values, schema)
    undocumented = set(schema["properties"]) - set(values) - {"global"}
    assert not undocumented


def script(name: str, **env: str) -> list[str]:
    "A script of the chart as its container runs it"
    return ["env", "-i", f"PATH={env.pop('PATH', '/usr/bin:/bin')}", *(f"{k}={v}" for k, v in env.items()), "sh", "-c", (CHART / "files" / name).read_text()]

def sh(name: str, **env: str) -> subprocess.CompletedProcess: return subprocess.run(script(name, **env), capture_output=True, text=True)

def test_upload_and_wait(tmp_path):
    "The scripts of the claim: whole archives arrive at once, what is there is not copied again but for its signature, other bytes are refused, and who waits sees it"
    source, store = tmp_path / "models", tmp_path / "claim"
    for folder in (source, store): folder.mkdir()
    (source / "a-1.mar").write_bytes(b"archive")
    (source / "a-1.mar.sig").write_text("signature")
    env = dict(SOURCE=str(source), STORE=str(store), SHA256SUMS=f"{sha256(source / 'a-1.mar')}  a-1.mar")
    assert sh("await.sh", **env, WAIT="0").returncode == 1
    waiting = subprocess.Popen(script("await.sh", **env, WAIT="20"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert sh("upload.sh", **env).returncode == 0 and waiting.wait(20) == 0
    assert sorted(p.name for p in store.iterdir()) == ["a-1.mar", "a-1.mar.sig"]
    (source / "a-1.mar.sig").write_text("signed anew")
    assert "is there" in sh("upload.sh", **env).stdout and (store / "a-1.mar.sig").read_text() == "signed anew"
    (store / "a-1.mar").unlink()
    (source / "a-1.mar").write_bytes(b"another")
    refused = sh("upload.sh", **env)
    assert refused.returncode and not (store / "a-1.mar").exists(), refused.stderr

def test_each_revision_has_its_own_archives(tmp_path):
    "What an init container or the upload goes by stands in its own template: neither a later release nor a changed image touches a pod or a Job that is there"
    for case in ("pvc", "s3"):
        old, new = (template(tmp_path, over(CASES[case], dict(models=[m]))) for m in MODELS)
        assert not of_kind(old, "ConfigMap")[1:] and MODELS[0]["sha256"] in yaml.safe_dump(pod_specs(old)) and MODELS[1]["sha256"] not in yaml.safe_dump(pod_specs(old))
    image = dict(image=dict(repository="registry.example/zz", digest=OTHER))
    jobs = [of_kind(template(tmp_path, over(CASES["pvc"], more)), "Job")[0] for more in ({}, {}, image, dict(commonLabels=dict(team="shop")))]
    assert [j["spec"] == jobs[0]["spec"] for j in jobs] == [j["metadata"]["name"] == jobs[0]["metadata"]["name"] for j in jobs] == [True, True, False, False]

@pytest.mark.deploy
def test_fetch_from_s3(tmp_path):
    "The script of the s3 store with the real AWS CLI, from a server that speaks S3: archives, and signatures where they are asked for; what is not there is an error"
    bin = ROOT / ".venv-aws" / "bin"
    if not (bin / "aws").exists(): missing("the AWS CLI is not installed: make deploy-check does that, in an environment of its own")
    [port] = free_ports(1)
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = shop\naws_secret_access_key = not-a-secret-of-anybody\n")
    (tmp_path / "store").mkdir()
    (tmp_path / "a-1.mar").write_bytes(b"archive")
    env = dict(PATH=f"{bin}:/usr/bin:/bin", AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"), AWS_DEFAULT_REGION="eu-central-1", HOME=str(tmp_path),
               URI="s3://models/film", STORE=str(tmp_path / "store"), SHA256SUMS=f"{sha256(tmp_path / 'a-1.mar')}  a-1.mar")
    aws = lambda *args: subprocess.run(["aws", "s3", *map(str, args)], env=env, capture_output=True, text=True, check=True)
    server = subprocess.Popen([bin / "moto_server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: subprocess.run(["aws", "s3", "ls"], env=env, capture_output=True).returncode == 0)
        aws("mb", "s3://models")
        aws("cp", tmp_path / "a-1.mar", "s3://models/film/a-1.mar")
        assert (done := sh("fetch-s3.sh", **env)).returncode == 0, done.stderr
        assert [(p.name, p.read_bytes()) for p in (tmp_path / "store").iterdir()] == [("a-1.mar", b"archive")]
        assert (unsigned := sh("fetch-s3.sh", **env, SIGNED="yes")).returncode and "a-1.mar.sig" in unsigned.stderr
        aws("cp", tmp_path / "credentials", "s3://models/film/a-1.mar.sig")
        assert sh("fetch-s3.sh", **env, SIGNED="yes").returncode == 0 and len(list((tmp_path / "store").iterdir())) == 2
        assert sh("fetch-s3.sh", **env | {"URI": "s3://models/elsewhere"}).returncode
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory):
    "Two versions of a small model, packed"
    tmp = tmp_path_factory.mktemp("versions")
    source = "from zztoolkit import Handler\n\nclass Counting(Handler):\n    def preprocess(self, requests): return list(requests)\n    def inference(self, xs): return [{n} * x['n'] for x in xs]\n"

    def pack_nth(n: int):
        (tmp / "counting.py").write_text(source.replace("{n}", str(n)))
        return pack("counting", tmp / "counting.py", version=f"1.{n}", store=tmp / f"v{n}", example={"n": 1}, minWorkers=2, threads=1)
    return pack_nth(0), pack_nth(1)

def zz(*args, **kw) -> subprocess.CompletedProcess:
    return subprocess.run([str(Path(sys.executable).parent / "zz"), *map(str, args)], capture_output=True, text=True, **kw)

@pytest.mark.slow
def test_rollout_and_rollback(two_versions, tmp_path):
    "Render, check, diff, apply as a person types them: a new version, and back to the old one by its digest"
    old, new = two_versions
    (tmp_path / "ours.yaml").write_text("auth: {existingSecret: shop-tokens}\n")
    (tmp_path / "example").write_text('{"n": 1}')
    common = ("--to", "deploy", "--values", "ours.yaml", "--example", "counting=example", "--image", f"registry.example/zz@{DIGEST}")
    first = zz("deploy", "render", old.path, *common, cwd=tmp_path)
    assert first.returncode == 0 and old.digest[:12] in first.stdout, first.stderr
    assert (found := zz("deploy", "check", cwd=tmp_path)).returncode == 0, found.stdout
    shutil.copytree(tmp_path / "deploy", tmp_path / "before")
    zz("deploy", "render", new.path, *common, cwd=tmp_path)
    assert f"counting 1.0 ({old.digest[:12]}) → 1.1 ({new.digest[:12]})" in zz("deploy", "diff", "--against", "before", cwd=tmp_path).stdout
    back = zz("deploy", "render", f"counting@sha256:{old.digest[:10]}", *common, cwd=tmp_path)
    assert back.returncode == 0 and yaml.safe_load((tmp_path / "deploy" / "values.yaml").read_text()) == yaml.safe_load((tmp_path / "before" / "values.yaml").read_text())
    ambiguous = zz("deploy", "render", "counting", *common, cwd=tmp_path)
    assert ambiguous.returncode == 1 and "more than one archive" in ambiguous.stderr
    alone = zz("deploy", "apply", cwd=tmp_path, env=os.environ | {"KUBECONFIG": str(tmp_path / "none")})
    assert alone.returncode == 1 and "no Kubernetes cluster answers" in alone.stderr and "Traceback" not in alone.stderr

def test_a_release_of_another_server(two_versions, tmp_path):
    "What depends on the server, and nothing else; one version of a model; and an image of the same server"
    (tmp_path / "ours.yaml").write_text("auth: {existingSecret: shop-tokens}\n")
    rendered = lambda to, *mars, **kw: render([m.path for m in mars], tmp_path / to, image=f"zz@{DIGEST}", values=tmp_path / "ours.yaml", **kw)
    usual, other = rendered("usual", two_versions[0]), rendered("other", two_versions[0], server="mosec")
    servers = [server_of(r.objects()) for r in (usual, other)]
    assert [{*a["args"]} - {*b["args"]} for a, b in (servers, servers[::-1])] == [{"--server=torchserve"}, {"--server=mosec"}]
    memory = [int(s["resources"]["limits"]["memory"].removesuffix("Mi")) for s in servers]
    assert memory[0] - memory[1] == 1024        # Java's heap
    for s in servers: del s["args"], s["resources"]
    assert servers[0] == servers[1]
    with pytest.raises(ToolkitError, match="one version of a model"): rendered("two", *two_versions, server="mosec")
    (other.folder / "container").mkdir()
    (other.folder / "container" / "Dockerfile").write_text(dockerfile("mosec"))
    [same] = _check_server(other)
    (other.folder / "container" / "Dockerfile").write_text(dockerfile())
    [differs] = _check_server(other)
    assert same.ok and not differs.ok and "--server mosec" in differs.remedy and "java" not in dockerfile("mosec").lower().replace("javascript", "")

def test_a_release_that_loads_models_on_demand(two_versions, tmp_path):
    "Its memory is that of the models together, however many there are; TorchServe and a Ray cluster cannot"
    mar = two_versions[0]
    made = render([mar.path], tmp_path / "some", image=f"zz@{DIGEST}", build=False, server="mosec", memory="2GB")
    values = yaml.safe_load((made.folder / "values.yaml").read_text())
    assert values["server"]["memory"] == "2GB" and values["resources"]["limits"]["memory"] == "3584Mi"
    assert resources([mar] * 100, "mosec", memory="2GB") == resources([mar], "mosec", memory="2GB")
    with pytest.raises(ToolkitError, match="torchserve loads all models"): render([mar.path], tmp_path / "none", memory="2GB")
    refused = zz("deploy", "render", mar.path, "--kuberay", "--memory", "2GB", cwd=tmp_path)
    assert refused.returncode == 1 and "a Ray cluster loads all its models" in refused.stderr

@pytest.mark.slow
def test_a_release_with_a_language_model(two_versions, tmp_path):
    "Rendered as a person types it, beside an archive and alone: digest, engine, memory; checked, and compared with other weights"
    weights = tmp_path / "qwen"
    weights.mkdir()
    for name, text in (("model.safetensors", "weights"), ("config.json", "{}"), (".notes", "of a downloader")): (weights / name).write_text(text)
    (tmp_path / "ours.yaml").write_text("auth: {existingSecret: shop-tokens}\nllm: {volume: {persistentVolumeClaim: {claimName: weights}}}\n")
    common = ("--llm", "assistant=qwen", "--values", "ours.yaml", "--image", f"registry.example/zz@{DIGEST}", "--example", "counting=example")
    (tmp_path / "example").write_text('{"n": 1}')
    both = zz("deploy", "render", two_versions[0].path, *common, cwd=tmp_path)
    lines = "".join(f"{sha256(weights / n)}  {n}\n" for n in ("config.json", "model.safetensors"))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert both.returncode == 0 and f"counting 1.0 ({two_versions[0].digest[:12]}), assistant ({digest[:12]})" in both.stdout, both.stderr
    values = yaml.safe_load((tmp_path / "deploy" / "values.yaml").read_text())
    assert values["llm"] == dict(name="assistant", file="", sha256=digest, engine="vllm") and values["gpu"] == {"count": 1}
    assert "COPY . /" in (tmp_path / "deploy" / "llm.Dockerfile").read_text()
    found = zz("deploy", "check", cwd=tmp_path)
    assert found.returncode == 0 and digest[:12] in found.stdout, found.stdout
    shutil.copytree(tmp_path / "deploy", tmp_path / "before")
    (weights / "model.safetensors").write_text("other weights")
    alone = zz("deploy", "render", *common[:-2], "--name", "counting", cwd=tmp_path)
    assert alone.returncode == 0 and not (tmp_path / "deploy" / "models.Dockerfile").exists(), alone.stderr
    changes = zz("deploy", "diff", "--against", "before", cwd=tmp_path).stdout
    assert f"~ assistant ({digest[:12]}) → (" in changes and "- counting 1.0" in changes
    (tmp_path / "ours.yaml").write_text("auth: {existingSecret: shop-tokens}\n")
    homeless = zz("deploy", "render", *common[:-2], cwd=tmp_path)
    assert "render again with --values FILE that names it as llm.volume" in homeless.stdout and "assistant in deploy" in homeless.stdout
    assert "llm.volume" in zz("deploy", "check", cwd=tmp_path).stdout
    assert "give one or more archives, or --llm" in zz("deploy", "render", cwd=tmp_path).stderr

def test_images_of_a_language_model():
    "No Java where nothing needs it; vLLM's own image as the base; the engine for a CPU from the lock"
    alone, both, vllm = dockerfile(llm="openvino", has_models=False), dockerfile(llm="openvino"), dockerfile(llm="vllm", has_models=False)
    assert "default-jre" not in alone and "/ts/frontend" in alone and "default-jre" in both
    assert "ARG BASE=vllm/vllm-openai" in vllm and "ARG BASE=python:" in alone and not re.search(r"{\w+}", vllm.replace("${BASE}", ""))
    assert needed_extras([], llm="openvino") == ["gateway", "llm"] and needed_extras([], llm="vllm") == ["gateway"]

def test_the_chart_knows_the_servers():
    "All that pods can run, and no other"
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert {*schema["properties"]["server"]["properties"]["kind"]["enum"]} == {*SERVERS}

def test_a_failed_render_changes_nothing(two_versions, tmp_path):
    release = render([two_versions[0].path], tmp_path / "deploy", examples={"counting": {"n": 1}}, build=False)
    before = {p: p.read_bytes() for p in (tmp_path / "deploy").rglob("*") if p.is_file()}
    with pytest.raises(ToolkitError, match="no values"): render([two_versions[1].path], tmp_path / "deploy", values=tmp_path / "none.yaml")
    with pytest.raises(ToolkitError, match="example"): render([two_versions[1].path], tmp_path / "deploy", examples={"stranger": 1})
    assert {p: p.read_bytes() for p in (tmp_path / "deploy").rglob("*") if p.is_file()} == before and Release.open(tmp_path / "deploy") == release

@pytest.mark.slow
def test_check_finds_what_is_wrong(two_versions, tmp_path):
    "A changed archive, another archive under a pinned name, values that do not fit, and a model that nobody can try"
    (tmp_path / "ours.yaml").write_text("auth: {existingSecret: shop-tokens}\n")
    release = render([two_versions[0].path], tmp_path / "deploy", image=f"zz@{DIGEST}", values=tmp_path / "ours.yaml")
    state, archives = lambda: {f.name: (f.ok, f.detail) for f in check(release)}, lambda: _check_archives(release)
    assert [n for n, (ok, _) in state().items() if not ok] == ["helm test"]      # which is advice: it may be applied all the same
    assert diff(release, release).split() == ["counting", "stays", "1.0", f"({two_versions[0].digest[:12]})"]
    kept = release.folder / "archives" / stored_name(two_versions[0])
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + b"!")
    assert not check(release).ok and not archives().ok
    kept.write_bytes(two_versions[1].path.read_bytes())
    kept.with_name(kept.name + ".sha256").write_text(two_versions[1].digest)
    assert "the values pin" in archives().detail
    render([two_versions[0].path], tmp_path / "deploy", image=f"zz@{DIGEST}", values=tmp_path / "ours.yaml")
    assert archives().ok and kept.read_bytes() == whole      # rendered again, as it says
    (release.folder / "own-values.yaml").write_text("auth: {existingSecret: shop-tokens}\nreplicas: many\n")
    found = state()
    assert not found["helm lint"][0] and "replicas" in found["helm lint"][1] and "objects" not in found     # said once

@pytest.mark.parametrize("own, says", [("store:\n", "store"), ("image: foo\n", "image"), ("a: [", "no values in"), ("- a\n- b\n", "a list"), ("models: []\n", "names models"), ("\0", "no values in")])
def test_own_values_are_read_before_anything_is_written(own, says, two_versions, tmp_path):
    (tmp_path / "ours.yaml").write_text(own)
    with pytest.raises(ToolkitError, match=says): render([two_versions[0].path], tmp_path / "deploy", image="zz:1", values=tmp_path / "ours.yaml")
    assert not (tmp_path / "deploy").exists()

@pytest.mark.parametrize("what", [dict(image="a@sha256:123"), dict(image="a:b:c"), dict(image="UPPER/x/Y:1"), dict(image="https://reg/x:1"), dict(name="Not_A_Name"), dict(name="3d")])
def test_names_are_looked_at(what, two_versions, tmp_path):
    with pytest.raises(ToolkitError): render([two_versions[0].path], tmp_path / "deploy", **what, build=False)
    assert not (tmp_path / "deploy" / "values.yaml").exists()

@pytest.mark.slow
def test_check_asks_for_signatures(two_versions, tmp_path):
    "Where pods want signed archives, one that is not is found before any pod refuses it"
    (tmp_path / "ours.yaml").write_text("auth: {existingSecret: shop-tokens}\nsignatures: {existingConfigMap: release-keys}\n")
    mar = two_versions[0].move_to(tmp_path)
    found = lambda: check(render([mar.path], tmp_path / "deploy", image=f"zz@{DIGEST}", values=tmp_path / "ours.yaml", examples={"counting": {"n": 1}}))
    assert not found().ok and "no pod would start them" in str(found())
    sign(mar, new_key(tmp_path / "release")[0])
    assert found().ok and f"COPY {stored_name(mar)} {stored_name(mar)}.sha256 {stored_name(mar)}.sig /models/" in (tmp_path / "deploy" / "models.Dockerfile").read_text()

def test_apply_asks_for_an_example_first(two_versions, tmp_path):
    "helm's test would fail for want of a request, and the release before it come back"
    (tmp_path / "ours.yaml").write_text("auth: {existingSecret: shop-tokens}\n")
    release = render([two_versions[0].path], tmp_path / "deploy", image=f"zz@{DIGEST}", values=tmp_path / "ours.yaml")
    with pytest.raises(ToolkitError, match="nothing to test counting with") as e: apply(release)
    assert "--example NAME=FILE" in str(e.value) and "--no-test" in str(e.value)

@pytest.mark.slow
@pytest.mark.parametrize("before, back", [(True, True), (True, False), (False, False)])
def test_apply_goes_back(before, back, two_versions, tmp_path, monkeypatch):
    "A prediction fails after the upgrade: the release before it serves again, and it is said; there is no cluster here, so it is the order of helm's commands that is looked at"
    (tmp_path / "ours.yaml").write_text("auth: {existingSecret: shop-tokens}\n")
    release = render([two_versions[0].path], tmp_path / "deploy", image=f"zz@{DIGEST}", values=tmp_path / "ours.yaml", examples={"counting": {"n": 1}})
    asked = []

    def answer(*args: str) -> str:
        if args[0] in ("lint", "template"): return helm(*args)
        asked.append(args[0])
        if args[0] == "test": raise ToolkitError("helm test failed", found="counting 1.0 FAILED: 500")
        if args[0] == "rollback" and not back: raise ToolkitError("helm rollback failed", found="timed out")
        if args[0] == "get" and not before: raise ToolkitError("helm get failed", found="Error: release: not found")
        return "manifest"
    monkeypatch.setattr("zztoolkit.deploy.releasing.helm", answer)
    with pytest.raises(ToolkitError, match="does not predict") as e: apply(release)
    assert "FAILED: 500" in e.value.found and asked == ["get", "upgrade", "test", *["rollback"] * before] and ("is back" in e.value.found, "timed out" in e.value.found) == (back, before and not back)

@pytest.mark.slow
def test_helm_test_predicts(classifier, server, lite0, tmp_path, photo):
    "The script of `helm test` against a real server: it predicts, and it fails for a wrong token, a wrong version and a missing example"
    entry = dict(name="classifier", version=classifier.info["modelVersion"], example=dict(file="files/examples/photo", contentType="application/octet-stream"))
    shutil.copy(photo, tmp_path / "photo")

    def run(entry: dict, token: str) -> subprocess.CompletedProcess:
        (tmp_path / "models.json").write_text(json.dumps([entry]))
        (tmp_path / "tokens").write_text(f"# ours\n{token}\n")
        env = dict(URL=server._url(0), EXAMPLES=str(tmp_path), TOKENS=str(tmp_path / "tokens"), CERTIFICATE=str(tmp_path / "none"), PATH="/usr/bin:/bin")
        return subprocess.run([sys.executable, str(CHART / "files" / "predict.python")], env=env, capture_output=True, text=True)
    token = server.management.tokens.bearer("inference")["Authorization"].split()[1]
    good = run(entry, token)
    assert good.returncode == 0 and "military uniform" in good.stdout, good.stderr
    assert run(entry, "wrong-token-0000").returncode == 1
    assert "404" in run(entry | {"version": "9"}, token).stderr
    assert "--example" in run({k: v for k, v in entry.items() if k != "example"}, token).stderr


def rules_of(objects: list[dict], folder: Path) -> tuple[Path, dict]:
    "The rules of a release, as Prometheus' operator would write them into a file"
    spec = of_kind(objects, "PrometheusRule")[0]["spec"]
    (folder / "rules.yaml").write_text(yaml.safe_dump(spec))
    return folder / "rules.yaml", spec

def promtool(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    if not shutil.which("promtool"): missing("Debian's prometheus is not installed")
    return subprocess.run(["promtool", *args], cwd=cwd, capture_output=True, text=True)

@pytest.mark.slow
def test_every_alert_fires_and_clears(tmp_path):
    "A history for each alert in which it is silent, fires and is silent again; with its thresholds gone, the same histories fail"
    file, spec = rules_of(template(tmp_path, CASES["monitored"]), tmp_path)
    names = {r["alert"] for g in spec["groups"] for r in g["rules"] if "alert" in r}
    assert names == {t.split(",")[0].split()[0] for t in ALERTS} and not re.search(r"\$[A-Z]", file.read_text())
    assert "SUCCESS" in promtool("check", "rules", file.name, cwd=tmp_path).stdout
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(rule_tests(file.name, ALERTS)))
    assert (done := promtool("test", "rules", "tests.yaml", cwd=tmp_path)).returncode == 0, done.stdout + done.stderr
    few = {k: ALERTS[k] for k in ("ZzWorkersDie", "ZzQueueGrows")}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(rule_tests(file.name, few)))
    for r in (r for g in spec["groups"] for r in g["rules"] if "alert" in r): r["expr"] = re.sub(r"[<>] ([\d.]+|zz_wanted)", r">= 0 * \1", r["expr"])
    file.write_text(yaml.safe_dump(spec))
    failed = promtool("test", "rules", "tests.yaml", cwd=tmp_path)
    assert failed.returncode and "FAILED" in failed.stdout + failed.stderr and all(k in failed.stdout + failed.stderr for k in few)

def test_dashboard_is_what_its_notebook_says():
    assert (CHART / "files" / "dashboard.json").read_text() == dashboard_json()     # python -m zztoolkit.deploy.dashboard writes it

def operands(e) -> list:
    "What a condition compares: the parts of a query that have values whether or not it is met"
    kind = type(e).__name__
    if kind == "ParenExpr": return operands(e.expr)
    if kind == "NumberLiteral": return []
    if kind == "Call" and e.func.name == "absent": return [a for arg in e.args for a in operands(arg)]
    if kind == "BinaryExpr" and re.search(r"(^| )(>|<|==|>=|<=|and|or|unless)( |$)", str(e.op)): return operands(e.lhs) + operands(e.rhs)
    return [e]

@pytest.fixture
def work():
    "A folder whose path is short enough for any server's sockets"
    with temporary_folder("zz-work-") as folder: yield folder

@pytest.mark.slow
def test_every_query_finds_data(classifier_mar, photo, work, tmp_path):
    "What was rendered, run: the chart's own command line under load, a worker killed, and a real Prometheus with the chart's rules: every panel's and every alert's query has values"
    mar = with_config(classifier_mar, tmp_path, minWorkers=2, batchSize=4, maxBatchDelay=5, threads=1)
    (tmp_path / "ours.yaml").write_text("auth: {existingSecret: shop-tokens}\nfullnameOverride: film-zztoolkit\nmonitoring: {rules: {enabled: true}}\nserver: {endpointWaitSeconds: 0}\n")
    objects = (release := render([mar.path], tmp_path / "deploy", name="film", image=f"zz@{DIGEST}", values=tmp_path / "ours.yaml", server=SERVER)).objects("shop")
    file, spec = rules_of(objects, tmp_path)
    (tmp_path / "tokens").write_text(token := "0123456789abcdef-shop")
    here = {"/models": release.folder / "archives", "--host=0.0.0.0": "--host=127.0.0.1", "--work=/work": f"--work={work}", "--tokens=/etc/zztoolkit/tokens/tokens": f"--tokens={tmp_path}/tokens"}
    cluster, over_at = serve_text((HERE / "cluster.prom").read_text(), tmp_path), threading.Event()
    headers, body = {"Content-Type": "application/octet-stream", "Authorization": f"Bearer {token}"}, photo.read_bytes()

    def press(pod: Pod):
        with httpx.Client(trust_env=False, timeout=30) as http:
            while not over_at.is_set(): http.post(pod.url(0, "/predictions/classifier"), content=body, headers=headers)
    with Pod(tmp_path / "log", *(here.get(a, a) for a in server_of(objects)["args"])) as pod, Prometheus(tmp_path, file, [pod.ports[3], pod.ports[4]], cluster.server_port) as prometheus:
        wait_until(lambda: "zz run: ready" in pod.said(), 60)
        clients = [threading.Thread(target=press, args=(pod,)) for _ in range(3)]
        for c in clients: c.start()
        try:
            next(w for w in pod.workers() if w.cmdline()[0] != "/bin/sh").kill()
            prometheus.wait(f'zz_worker_exits_total{{pod="{PODS[0]}"}} offset 3s')
            prometheus.wait("sum(zz_ready_workers) == 2", 40)
            asked = {("panel", p.title, legend): in_grafana(q) for row in panels().values() for p in row for legend, q in p.queries.items()}
            rules = {r.get("alert") or r["record"]: r["expr"] for g in spec["groups"] for r in g["rules"]}
            for name, q in rules.items(): asked |= {("rule", name, part.prettify()): part.prettify() for part in operands(promql_parser.parse(q))}
            asked = {what: q for what, q in asked.items() if "_time_to_first_token_" not in q and what[1] not in OF_LLM}      # tests/llm/test_pod_llm.py asks them
            asked = {what: q for what, q in asked.items() if "zz_model_load_failures_total" not in q}     # tests/deploy/test_on_demand.py has such a pod
            asked["KEDA", "queue", ""] = of_kind(template(tmp_path, CASES["keda"]), "ScaledObject")[0]["spec"]["triggers"][0]["metadata"]["query"]
            empty, end = [*asked], time.monotonic() + 20
            while empty and time.monotonic() < end:
                time.sleep(0.5)
                empty = [what for what in empty if not finite(prometheus, asked[what])]
            health = [(r["name"], r["lastError"]) for g in prometheus.ask("rules")["groups"] for r in g["rules"] if r["health"] != "ok"]
            answered = prometheus.values('sum(zz_responses_total{code="2xx"})')
        finally:
            over_at.set()
            for c in clients: c.join()
            cluster.shutdown()
    assert not empty and not health and answered[0] > 20, (empty, health, answered)

OF_LLM = {p.title for p in panels()["Language model"]}

def in_grafana(query: str) -> str:
    "A panel's query with its variables chosen"
    chosen = {"$namespace": "shop", "$service": "film-zztoolkit-metrics", "$pod": PODS[0], "$__rate_interval": "10s", "$GPU_NAMESPACE": "exported_namespace", "$GPU_POD": "exported_pod"}
    for k in sorted(chosen, key=len, reverse=True): query = query.replace(k, chosen[k])
    return query

def finite(prometheus: Prometheus, query: str) -> bool: return any(math.isfinite(v) for v in prometheus.values(query))

@pytest.mark.deploy
@pytest.mark.parametrize("case", ["cpu", "gpu", "tls", "two_versions", "monitored", "pvc", "s3", "oci", "llm", "vllm"])
def test_checkov(case, tmp_path):
    "Every rule of checkov holds, but for those of tests/checkov.yaml; each of these is still needed"
    checkov = ROOT / ".venv-checkov" / "bin" / "checkov"
    if not checkov.exists(): missing("checkov is not installed: make deploy-check does that, in an environment of its own")
    (tmp_path / "rendered.yaml").write_text("---\n".join(map(yaml.safe_dump, template(tmp_path, CASES[case]))))
    done = subprocess.run([checkov, "-f", "rendered.yaml", "--framework", "kubernetes", "--quiet", "--compact", "--skip-download", "-o", "json"], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    report = json.loads(done.stdout)
    found = {(f["check_id"], f["resource"]) for f in report["results"]["failed_checks"]}
    assert found == {(s["check"], s["resource"]) for s in yaml.safe_load((HERE / "checkov.yaml").read_text())} and report["summary"]["passed"] > 100

def certificate(folder: Path, serial: int):
    "A certificate for localhost and its key, as a Secret would be mounted"
    from datetime import datetime, timedelta, timezone
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec
    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]), datetime.now(timezone.utc)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(serial).not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1)).add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False).sign(key, hashes.SHA256()))
    folder.mkdir(exist_ok=True)
    (folder / "tls.crt").write_bytes(made.public_bytes(s.Encoding.PEM))
    (folder / "tls.key").write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))

def test_tls_and_its_rotation(tmp_path):
    "The front speaks HTTPS alone; a renewed certificate is shown to the next caller, and one without its key changes nothing"
    from cryptography import x509
    from zztoolkit.deploy.proxy import Proxy, renew_certificate
    if not (shutil.which("haproxy") or Path("/usr/sbin/haproxy").exists()): missing("Debian's haproxy is not installed")
    certificate(tmp_path / "tls", 1)
    site, [port] = serve_text("answered\n", tmp_path), free_ports(1)
    (tmp_path / "metrics").rename(tmp_path / "ping")
    (own := tmp_path / "own").mkdir()
    front = Proxy(own, "127.0.0.1", port, site.server_port, tls=tmp_path / "tls").start()
    serial = lambda: x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode()).serial_number

    def ask() -> str:
        context = ssl.create_default_context(cafile=str(tmp_path / "tls" / "tls.crt"))
        return httpx.get(f"https://localhost:{port}/ping", verify=context, trust_env=False).text
    try:
        assert ask() == "answered\n" and serial() == 1 and renew_certificate(front) == ""
        certificate(tmp_path / "tls", 2)
        assert "another certificate" in renew_certificate(front) and serial() == 2 and ask() == "answered\n"
        kept = (tmp_path / "tls" / "tls.key").read_bytes()
        certificate(tmp_path / "tls", 3)
        (tmp_path / "tls" / "tls.key").write_bytes(kept)
        assert "stays as it was" in renew_certificate(front) and serial() == 2
        with pytest.raises(httpx.HTTPError): httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    finally:
        front.stop()
        site.shutdown()

@pytest.mark.deploy
def test_render_writes_the_container_build(two_versions, tmp_path):
    "Without an image there is one to build: Dockerfile, a lock with digests, our wheel, and this release's archives alone"
    for mar in two_versions: release = render([mar.path], tmp_path / "deploy", examples={"counting": {"n": 1}})
    build = release.folder / "container"
    assert {"Dockerfile", "requirements.lock"} < {p.name for p in build.iterdir()} and len(list(build.glob("zztoolkit-*.whl"))) == 1
    assert [p.name for p in (build / "models").glob("*.mar")] == [stored_name(two_versions[1])] and len(list((release.folder / "archives").glob("*.mar"))) == 2
    assert all("--hash=sha256:" in l for l in (build / "requirements.lock").read_text().splitlines())
    assert release.values["image"] == dict(repository="counting", tag=archive_set_digest(release.models))
    assert "container/models" in wrong_archives(release, build / "models" / stored_name(two_versions[1]))

def wrong_archives(release: Release, file: Path) -> str:
    "What `check` says of the archives once a file is changed"
    file.write_bytes(file.read_bytes() + b"!")
    return check(release)[0].detail

def test_sizing_reads_the_ladder(tmp_path):
    "The figures of a rung are the medians of the record that the ladder writes"
    from zztoolkit.benchmarks.ladder import Ladder, Side, Turn
    from zztoolkit.deploy.sizing import Assumptions, ReplicaProfile, frontend_cores, scaling_limits, size_cluster, stage_cores
    turns = tuple(Turn(rate, 20.0, 40.0, 0, dict(workers=1.5, frontend=0.25, generator=0.1), 1024.0, stages=dict(decode=20.0, preprocess=4.0, inference=6.0)) for rate in (40.0, 50.0, 90.0))
    Ladder((Side("stock", "rung", turns[:1]), Side("tuned", "rung", turns)), about=dict(cores=2)).save(tmp_path / "ladder.json")
    m = ReplicaProfile.rung(tmp_path / "ladder.json", payload=1e6)
    s = size_cluster(1000, m, Assumptions(core_hour=1.0, used=0.5, spare=0.1))
    assert (m.rate, m.memory, s.replicas, s.cores, s.gbit, frontend_cores(s)) == (50.0, 1024.0, 44, 88, 8.0, 5.0)
    assert round(stage_cores(s, "decode"), 6) == 20.0 and "24 cores busy, inference 6" in scaling_limits(s)["decode"]
