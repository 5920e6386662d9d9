"The package as a user meets it: light to import, its exports in step with the notebooks."
import json, re, shutil, subprocess, sys

from conftest import ROOT
from zztoolkit.cli.project import drift


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

def test_import_is_light():
    code = "import time; t = time.perf_counter(); import zztoolkit, sys; print(time.perf_counter() - t, 'torch' in sys.modules)"
    runs = [python(code).split() for _ in range(5)]
    assert min(float(seconds) for seconds, _ in runs) < 0.3
    assert {heavy for _, heavy in runs} == {"False"}

def test_chain_needs_no_torch():
    "A worker or an offline job that only preprocesses does not pay for PyTorch"
    code = ("import sys; from zztoolkit.vision import *; from zztoolkit import vision as V; "
            "V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())(sample_photo()); print('torch' in sys.modules)")
    assert python(code).strip() == "False"

def test_lazy_names():
    assert python("import zztoolkit as z; print(z.Handler.__name__, z.compile_model.__name__, 'LocalServer' in dir(z))").split() == ["Handler", "compile_model", "True"]

def test_nothing_drifted(): assert drift(ROOT) == []

def test_drift_is_found(tmp_path):
    "The check can fail: a changed module, a changed handler and a changed README are each found"
    copy = tmp_path / "copy"
    for folder in ("nbs", "zztoolkit", "handlers"): shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "settings.ini", "pyproject.toml"): shutil.copy(ROOT / file, copy)
    for f in ("zztoolkit/core.py", "handlers/imagenet_classifier.py", "README.md"): (copy / f).write_text((copy / f).read_text() + "\n# by hand\n")
    assert drift(copy) == ["README.md", "handlers/imagenet_classifier.py", "zztoolkit/core.py"]

def test_notebooks_hold_outputs_and_no_machine():
    "Outputs are kept for readers, and say nothing of the machine they were made on"
    private = re.compile(r"/tmp/|/root/|/home/|127\.0\.0\.1|localhost|pid=")
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts: continue
        cells = json.loads(path.read_text())["cells"]
        texts = ["".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/plain", "")) + "".join(o.get("data", {}).get("text/html", ""))
                 for c in cells for o in c.get("outputs", [])]
        assert texts, f"{path} keeps no output"
        assert not (found := [t for t in texts if private.search(t)]), (path, found)
        assert all(re.fullmatch(r"[a-z0-9-]+", c["id"]) for c in cells), f"{path} has a cell without a readable id"
