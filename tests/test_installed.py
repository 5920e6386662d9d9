"""zztoolkit from its wheel, in an environment and a project folder of their own, both with a space and an umlaut.

The environment sees the dependencies of this one, but not the checkout: the `.pth` files behind a `.pth` are not read.
"""
import json, os, re, shutil, subprocess, sys, sysconfig, zipfile
from pathlib import Path

import httpx, nbformat, pytest

from conftest import ROOT
from support.ports import block_of_five
from zztoolkit.deploy.wheel import own_wheel
from zztoolkit.samples import sample_photo

pytestmark = pytest.mark.slow


class Installation:
    "A virtual environment with zztoolkit's wheel, and a project folder to work in"
    def __init__(self, home: Path):
        self.home, self.bin = home, home / "env" / "bin"
        self.project = home / "project"
        self.project.mkdir()
        unwanted = ("PYTHONPATH", "VIRTUAL_ENV", "JUPYTER_PATH")
        kept = {k: v for k, v in os.environ.items() if k not in unwanted}
        self.env = kept | {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}

    def python(self, *args, **kw) -> str: return self.run(self.bin / "python", *args, **kw)
    def zz(self, *args) -> str: return self.run(self.bin / "zz", *args)

    def run(self, *args, env: dict = {}) -> str:
        done = subprocess.run([*map(str, args)], cwd=self.project, env=self.env | env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

def pip(*args):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The wheel of this checkout, as an image of it would get it"
    return own_wheel(tmp_path_factory.mktemp("wheel"))

@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installation:
    made = Installation(tmp_path_factory.mktemp("ein Prüfstand"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.bin.parent], check=True)
    pip("--python", made.bin / "python", "install", "-q", "--no-deps", "--no-compile", wheel)
    site = Path(made.python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def test_wheel_has_every_file(wheel):
    "Every module, and every file of the chart and of the image"
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "zztoolkit").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    with zipfile.ZipFile(wheel) as z: assert expected <= set(z.namelist())

def test_sdist_builds(tmp_path):
    "A source distribution has what setup.py reads: a wheel can be made of it"
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "zztoolkit", tree / "zztoolkit", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE"): shutil.copy(ROOT / file, tree)
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=tree, check=True, capture_output=True)
    [sdist] = tmp_path.glob("*.tar.gz")
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", sdist, "-w", tmp_path)
    assert list(tmp_path.glob("zztoolkit-*.whl"))

def test_the_wheel_is_imported(installed):
    "And the checkout is not even on the path"
    found = json.loads(installed.python("-c", "import json, sys, zztoolkit; print(json.dumps([zztoolkit.__file__, sys.path]))"))
    assert installed.bin.parent in Path(found[0]).parents
    assert not [p for p in found[1] if (installed.project / p / "settings.ini").exists()]


# README's story, as a notebook

def story() -> list[tuple[str, list[str]]]:
    "The Python cells of README's story, each with the outputs that it promises"
    text = (ROOT / "README.md").read_text().partition("\n## Quickstart\n")[2].partition("\n## ")[0]
    cells: list[tuple[str, list[str]]] = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)\n```$", text, re.M | re.S):
        if language == "python": cells.append((block, []))
        elif not language: cells[-1][1].append(block)
    assert len(cells) > 5
    return cells

def printed(cell) -> str:
    "All that a cell shows, as text"
    return "\n".join("".join(o.get("text") or o.get("data", {}).get("text/plain", "")) for o in cell.outputs)

@pytest.fixture(scope="module")
def quickstart(installed) -> list:
    "README's story, run by Jupyter in the new environment; then where it ran and where the artifact is"
    cells = [nbformat.v4.new_code_cell(source) for source, _ in story()]
    cells.append(nbformat.v4.new_code_cell("import zztoolkit\nprint(zztoolkit.__file__)\nprint(artifact.path)"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), installed.project / "story.ipynb")
    installed.python("-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", "story.ipynb")
    return nbformat.read(installed.project / "story.ipynb", 4).cells

def test_readme_story(installed, quickstart):
    "It runs as it stands there, prints what README promises, and leaves an archive"
    for (source, promised), cell in zip(story(), quickstart):
        for output in promised:
            if output.startswith(("✓ ", "Artifact on ")): continue      # which engine is fastest is the machine's matter
            assert output in printed(cell), source
    where = Path(printed(quickstart[-1]).splitlines()[0])
    assert installed.bin.parent in where.parents
    assert (installed.project / "model_store" / "classify.mar").exists()

@pytest.fixture(scope="module")
def mar(installed, quickstart) -> Path:
    "The story's handler and artifact, packed by `zz archive`"
    artifact = printed(quickstart[-1]).splitlines()[1]
    with zipfile.ZipFile(installed.project / "model_store" / "classify.mar") as z:
        (installed.project / "classify.py").write_bytes(z.read("classify.py"))
    shutil.copy(sample_photo(), installed.project / "ein Bild.jpg")
    said = installed.zz("archive", "classify.py", "--model", artifact, "--batch-size", "4", "--store", "packed")
    assert "sha256" in said
    return installed.project / "packed" / "classify.mar"

def test_serve_and_bench(installed, mar):
    "One request, a benchmark of the running model by its name, then SIGTERM"
    port = block_of_five()
    command = [installed.bin / "zz", "serve", mar, "--port", str(port)]
    server = subprocess.Popen(command, cwd=installed.project, env=installed.env, stdout=subprocess.PIPE, text=True)
    try:
        said = ""
        while "Ctrl-C" not in said:
            assert (line := server.stdout.readline()), said
            said += line
        key = json.loads(Path(re.search(r"open\('(.*?)'\)", said)[1]).read_text())["inference"]["key"]
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"}
        url = f"http://127.0.0.1:{port}/predictions/classify"
        response = httpx.post(url, content=sample_photo().read_bytes(), headers=headers, timeout=30)
        assert response.json() == {"class": 400}
        assert "bound by" in installed.zz("bench", "classify", "ein Bild.jpg", "-c", "1", "--seconds", "4")
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()

def test_offline(installed, mar):
    "A folder of photographs; then the answers, read in Python"
    (installed.project / "Fotos ü").mkdir()
    for i in range(3): shutil.copy(sample_photo(), installed.project / "Fotos ü" / f"{i}.jpg")
    installed.zz("offline", mar, "Fotos ü", "answers", "--processes", "1")
    code = "from zztoolkit import offline; print(offline.read('answers')['class'].tolist())"
    assert installed.python("-c", code).strip() == "[400, 400, 400]"

def test_image(installed, mar):
    "The context holds a wheel of the files that run, the archive, and no package named zztoolkit for pip to look up"
    installed.zz("image", "image context", mar)
    context = installed.project / "image context"
    [made] = context.glob("zztoolkit-*.whl")
    site = Path(installed.python("-c", "import zztoolkit, pathlib; print(pathlib.Path(zztoolkit.__file__).parent.parent)").strip())
    with zipfile.ZipFile(made) as z:
        modules = [n for n in z.namelist() if n.startswith("zztoolkit/")]
        assert len(modules) > 50 and all(z.read(n) == (site / n).read_bytes() for n in modules)
    lines = (context / "requirements.lock").read_text().splitlines()
    assert lines and all("--hash=sha256:" in line and not line.startswith("zztoolkit") for line in lines)
    assert (context / "models" / "classify.mar").read_bytes() == mar.read_bytes()

def test_own_wheel_asks_no_index(installed, wheel):
    "It is what was installed, packed again; a changed file is an error"
    core = Path(installed.python("-c", "import zztoolkit.errors; print(zztoolkit.errors.__file__)").strip())
    code = "import sys, pathlib; from zztoolkit.deploy.wheel import own_wheel; print(own_wheel(pathlib.Path(sys.argv[1])))"
    no_index = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_NO_INDEX": "1"}
    again = Path(installed.python("-c", code, installed.home, env=no_index).strip())
    assert again.name == wheel.name
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        assert all(first.read(n) == second.read(n) for n in first.namelist() if not n.endswith("RECORD"))
    pip("install", "-q", "--no-deps", "--target", installed.home / "third", again)
    before = core.read_bytes()
    core.write_bytes(before + b"# changed\n")
    with pytest.raises(AssertionError, match="zztoolkit/errors.py is not the file that was installed"):
        installed.python("-c", code, installed.home)
    core.write_bytes(before)

def test_deploy_render(installed, mar):
    "The chart comes from the wheel, with an image that exists"
    image = "registry.example/goods@sha256:" + "5" * 64
    installed.zz("deploy", "render", mar, "--image", image, "--to", "deploy ü")
    chart = {p.name for p in (installed.project / "deploy ü").rglob("*")}
    assert {"Chart.yaml", "values.yaml"} <= chart
