"The package as a user meets it: light to import, its names decided on, its exports in step with the notebooks."
import json, re, shutil, subprocess, sys, warnings
from collections import defaultdict
from importlib import import_module
from types import ModuleType

import pytest

from conftest import ROOT
from support.api import LIBRARY, lines, listed_names, surface, value_of
from support.imports import Import, against_order, cycle_in, imports_of
from zztoolkit.cli.project import drift
from zztoolkit.handler.stages import StageClock

# A name with two meanings, each well known in its field: of pixels (torchvision), of a column (NVTabular)
TWICE = {"Normalize"}


def python(code: str, *options: str) -> str:
    "Run code in a fresh interpreter and return what it prints"
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# Import

def test_import_is_light():
    code = "import time; t = time.perf_counter(); import zztoolkit, sys; print(time.perf_counter() - t, 'torch' in sys.modules)"
    runs = [python(code).split() for _ in range(5)]
    assert min(float(seconds) for seconds, _ in runs) < 0.3
    assert {heavy for _, heavy in runs} == {"False"}

def test_chain_needs_no_torch():
    "A worker or an offline job that only preprocesses does not pay for PyTorch"
    code = ("import sys; from zztoolkit import vision as V; from zztoolkit.samples import sample_photo; "
            "V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())(sample_photo()); print('torch' in sys.modules)")
    assert python(code).strip() == "False"

def test_lazy_names():
    code = "import zztoolkit as z; print(z.Handler.__name__, z.compile_model.__name__, 'LocalServer' in dir(z))"
    assert python(code).split() == ["Handler", "compile_model", "True"]

@pytest.mark.slow
@pytest.mark.parametrize("place", surface())
def test_each_package_is_imported_alone(place):
    "Whichever comes first: the order of imports does not matter"
    python(f"import {place} as p; [getattr(p, name) for name in {surface()[place]}]")


# Names

def test_public_names_are_decided():
    "A new public name is a decision: it gets a line in tests/api.txt"
    listed = (ROOT / "tests" / "api.txt").read_text().split()
    assert lines() == listed, "python tests/support/api.py > tests/api.txt"

def test_public_names_are_few():
    places = surface()
    assert sum(map(len, places.values())) < 200
    assert len(places["zztoolkit"]) <= 21
    for place, names in places.items():
        if place == "zztoolkit": continue
        others = [n for n in names if not is_operation(f"{place}.{n}")]
        assert len(others) <= 12, (place, others)

def is_operation(line: str) -> bool:
    "Whether it is a step of a `Chain` or of `Features`"
    home = getattr(value_of(line), "__module__", "")
    return home.startswith(("zztoolkit.vision.geometry", "zztoolkit.vision.pixels", "zztoolkit.features.ops."))

def test_public_names_are_what_they_say():
    "Also when every module is imported: none is hidden behind a module of the same name"
    for i in {i.of for i in imports_of(LIBRARY)} - {"root"}: import_module(f"zztoolkit.{i}")
    for line in lines():
        if isinstance(value_of(line), ModuleType): assert line.count(".") == 1, line

def test_a_public_name_has_one_meaning():
    meanings = defaultdict(set)
    for line in lines(): meanings[line.rpartition(".")[2]].add(id(value_of(line)))
    twice = {name for name, values in meanings.items() if len(values) > 1}
    assert twice == TWICE

def test_what_a_module_lists_is_public():
    "What a module of a package has in `__all__` is in the package's `__init__.pyi`: the documentation describes both"
    for place, names in surface().items():
        folder = LIBRARY.joinpath(*place.split(".")[1:])
        if place == "zztoolkit" or not folder.is_dir(): continue
        listed = {n for file in folder.rglob("*.py") for n in listed_names(file)}
        assert listed <= set(names), place

@pytest.mark.parametrize("old, name, new", [
    ("zztoolkit.frame", "Features", "zztoolkit.features.features"),
    ("zztoolkit.frame", "JoinExternal", "zztoolkit.features.ops.join"),
    ("zztoolkit.core", "ToolkitError", "zztoolkit.errors"),
    ("zztoolkit.core", "doctor", "zztoolkit.diagnosis"),
    ("zztoolkit.demo", "photographs", "zztoolkit.samples"),
    ("zztoolkit.demo", "serve_ours", "zztoolkit.benchmarks.demo"),
    ("zztoolkit.serve", "LocalServer", "zztoolkit.serving.torchserve.server"),
    ("zztoolkit.tensors", "Dim", "zztoolkit.compile.signature"),
    ("zztoolkit.ops", "Resize", "zztoolkit.vision.geometry"),
])
def test_old_names_work_with_a_warning(old, name, new):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now zztoolkit"):
        module = import_module(old)
    assert getattr(module, name) is getattr(import_module(new), name)
    with pytest.raises(AttributeError, match="nonsense"): module.nonsense

def test_old_names_of_members_work_with_a_warning():
    from zztoolkit import Batch, Handler
    from zztoolkit.handler.handler import lambda_functions_of

    class Old(Handler):
        functions = (len,)

    with pytest.warns(DeprecationWarning, match="Batch.results"): assert Batch.of([1, 2]).answers() == [1, 2]
    with pytest.warns(DeprecationWarning, match="lambda_functions"): assert lambda_functions_of(Old()) == (len,)
    old = Old()
    old.clock = StageClock()
    with pytest.warns(DeprecationWarning, match="count_decoding"): old.decoded(0.5)

def test_every_old_module_is_imported():
    from zztoolkit.moved import MOVED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for old, new in MOVED.items():
            import_module(f"zztoolkit.{old}")
            for module in new.split(): import_module(f"zztoolkit.{module}")

def test_every_renamed_name_is_found():
    "Names that have changed since, by the old module"
    from zztoolkit.moved import RENAMED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for old, new in RENAMED.items():
            assert value_of(f"zztoolkit.{old}") is value_of(f"zztoolkit.{new}"), old


# Layers

def test_imports_go_one_way():
    assert not [str(i) for i in against_order(imports_of(LIBRARY))]

def test_imports_have_no_ring(): assert cycle_in(imports_of(LIBRARY)) == []

def test_wrong_imports_are_found():
    "The two tests above can fail"
    upwards = Import("vision.chain", "serving.endpoint", 1, is_lazy=True)
    assert against_order([upwards]) == [upwards]
    assert not against_order([Import("cli.measuring", "benchmarks.ladder", 1, is_lazy=True)])
    assert against_order([Import("cli.measuring", "benchmarks.ladder", 1, is_lazy=False)])
    ring = [Import("a", "b", 1, False), Import("b", "c", 1, False), Import("c", "b", 1, False)]
    assert cycle_in(ring) == ["b", "c", "b"]
    assert cycle_in([*ring[:2], Import("c", "b", 1, is_lazy=True)]) == []


# Notebooks

def test_nothing_drifted(): assert drift(ROOT) == []

def test_drift_is_found(tmp_path):
    "The check can fail: a changed module, a changed handler and a changed README are each found"
    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("nbs", "zztoolkit", "handlers"): shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in ("README.md", "settings.ini", "pyproject.toml"): shutil.copy(ROOT / file, copy)
    changed = ["README.md", "handlers/imagenet_classifier.py", "zztoolkit/errors.py", "zztoolkit/features/ops/join.py"]
    for f in changed: (copy / f).write_text((copy / f).read_text() + "\n# by hand\n")
    assert drift(copy) == changed

def test_modules_that_notebooks_write_have_names_of_their_own():
    "Notebooks run in one process, in any order: the second `client.py` would be the first's module"
    written = defaultdict(list)
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        text = path.read_text()
        for name in re.findall(r"%%writefile (\w+)\.py", text):
            if re.search(rf"(from|import) {name}\b", text): written[name].append(path.name)
    assert written and all(len(paths) == 1 for paths in written.values()), dict(written)

def test_no_module_is_named_as_the_list_of_its_package():
    "On the site, a package's list of pages is its `index`"
    assert not list((ROOT / "zztoolkit").rglob("index.py"))

def test_notebooks_hold_outputs_and_no_machine():
    "Outputs are kept for readers, and say nothing of the machine they were made on"
    private = re.compile(r"/tmp/|/root/|/home/|127\.0\.0\.1|localhost|pid=|/site-packages/[a-z]+/.*Warning")
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts: continue
        cells = json.loads(path.read_text())["cells"]
        texts = [text for c in cells for o in c.get("outputs", []) for text in output_texts(o)]
        assert texts, f"{path} keeps no output"
        assert not (found := [t for t in texts if private.search(t)]), (path, found)
        assert all(re.fullmatch(r"[a-z0-9-]+", c["id"]) for c in cells), f"{path} has a cell without a readable id"

def output_texts(output: dict) -> list[str]:
    "Return what an output shows as text"
    data = output.get("data", {})
    parts = [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return ["".join(p) for p in parts]
