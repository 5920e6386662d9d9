"""Makes the schemas beside it from published packages, closed: a field that they do not name is an error.

    python tests/crds/make.py      # needs npm and pip

npm (MIT, made from the projects' own CRDs; later versions hold compiled validators instead of schemas):
@kubernetes-models/prometheus-operator 1.6.3, keda 0.3.1, gateway-api 0.5.1, cert-manager 4.3.1. PyPI: kserve 0.21.0 (Apache-2.0). GitHub: ray-project/kuberay 1.7.0 (Apache-2.0).
"""
import ast, json, re, subprocess, sys, tempfile, urllib.request, yaml, zipfile
from pathlib import Path

HERE = Path(__file__).parent
NPM = {"prometheus-operator@1.6.3": ["monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PrometheusRule"], "keda@0.3.1": ["keda.sh/v1alpha1/ScaledObject"],
       "gateway-api@0.5.1": ["gateway.networking.k8s.io/v1/HTTPRoute"], "cert-manager@4.3.1": ["cert-manager.io/v1/Certificate"]}
TYPES = {"int": {"type": "integer"}, "str": {"type": "string"}, "bool": {"type": "boolean"}}


def closed(schema, keep=("$schema", "type", "properties", "items", "required", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "additionalProperties", "x-kubernetes-int-or-string")):
    "Only what decides, and no field that is not named"
    if isinstance(schema, list): return [closed(s) for s in schema]
    if not isinstance(schema, dict): return schema
    kept = {k: ({n: closed(p) for n, p in v.items()} if k == "properties" else closed(v)) for k, v in schema.items() if k in keep}
    if "properties" in kept: kept.setdefault("additionalProperties", schema.get("x-kubernetes-preserve-unknown-fields", False))
    return kept

def write(kind: str, schema: dict):
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    (HERE / f"{kind}.json").write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")

def from_npm(package: str, kinds: list[str], tmp: Path):
    subprocess.run(["npm", "pack", "-s", f"@kubernetes-models/{package}"], cwd=tmp, check=True, capture_output=True)
    subprocess.run(["tar", "xzf", next(tmp.glob(f"*{package.partition('@')[0]}*.tgz"))], cwd=tmp, check=True)
    for kind in kinds:
        text = (tmp / "package" / f"{kind}.js").read_text()
        write(Path(kind).name, closed(json.loads(re.search(r"const schema = (\{.*?\n\});", text, re.S)[1])))

def class_fields(z: zipfile.ZipFile, name: str) -> dict:
    "The fields of a model of the KServe client by their names in YAML; what is no number, text or switch is left open"
    found = {t.targets[0].id: ast.literal_eval(t.value) for t in ast.walk(ast.parse(z.read(f"kserve/models/{name}.py"))) if isinstance(t, ast.Assign) and getattr(t.targets[0], "id", "") in ("openapi_types", "attribute_map")}
    return {found["attribute_map"][k]: TYPES.get(t, {}) for k, t in found["openapi_types"].items()}

def from_kserve(tmp: Path):
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "kserve==0.21.0", "-d", str(tmp)], check=True)
    with zipfile.ZipFile(next(tmp.glob("kserve*.whl"))) as z: service, spec, predictor = (class_fields(z, f"v1beta1_{n}") for n in ("inference_service", "inference_service_spec", "predictor_spec"))
    shut = lambda fields, **kw: {"type": "object", "properties": fields, "additionalProperties": False} | kw
    write("InferenceService", shut(service | {"apiVersion": {"enum": ["serving.kserve.io/v1beta1"]}, "kind": {"enum": ["InferenceService"]},
                                              "spec": shut(spec | {"predictor": shut(predictor, required=["containers"])}, required=["predictor"])}, required=["spec"]))

RAY_SERVICE = "https://raw.githubusercontent.com/ray-project/kuberay/v1.7.0/helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml"

def from_kuberay(crd: bytes):
    "A RayService without the status; the templates of pods are left open, since Kubernetes' own schema is for them"
    newest = next(v for v in yaml.safe_load(crd)["spec"]["versions"] if v["storage"])
    schema = newest["schema"]["openAPIV3Schema"]
    schema["properties"] |= {"apiVersion": {"enum": [f"ray.io/{newest['name']}"]}, "kind": {"enum": ["RayService"]}}
    del schema["properties"]["status"]
    cluster = schema["properties"]["spec"]["properties"]["rayClusterConfig"]["properties"]
    for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"]["items"]): group["properties"]["template"] = {"type": "object"}
    write("RayService", closed(schema))

if __name__ == "__main__":
    for package, kinds in NPM.items():
        with tempfile.TemporaryDirectory() as tmp: from_npm(package, kinds, Path(tmp))
    with tempfile.TemporaryDirectory() as tmp: from_kserve(Path(tmp))
    with urllib.request.urlopen(RAY_SERVICE) as r: from_kuberay(r.read())
