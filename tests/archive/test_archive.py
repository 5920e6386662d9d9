"Archives as strangers send them: damaged, inflated, exchanged; and handlers as engineers write them: tried before anything is packed."
import importlib.util, json, random, shutil, subprocess, sys, textwrap, tracemalloc, warnings, zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np, PIL.Image, pytest, torch

from conftest import ROOT
from zztoolkit import samples, vision as V
from zztoolkit.deploy.rendering import render
from zztoolkit.deploy.values import example_of, model_values, resources
from zztoolkit.vision.agreement import Agreement
from zztoolkit.archive.mar import Mar, open_mar
from zztoolkit.archive.packing import pack
from zztoolkit.archive.reconfigure import with_config
from zztoolkit.archive.rules import check_handler_file
from zztoolkit.compile.store import load_artifact
from zztoolkit.errors import ToolkitError
from zztoolkit.system import sha256
from zztoolkit.serving.rollout import deploy
from zztoolkit.archive.signing import new_key, sign

TIMES = """
from zztoolkit import Handler
class Times(Handler):
    factor = 2
    def preprocess(self, requests): return list(requests)
    def inference(self, xs): return [self.factor * x["n"] for x in xs]
"""

def pack_source(folder: Path, source: str = TIMES, name: str = "times", example={"n": 1}, **config) -> Mar:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    return pack(name, folder / f"{name}.py", store=folder / "store", example=example, **config)

@pytest.fixture(scope="module")
def times(tmp_path_factory) -> Mar: return pack_source(tmp_path_factory.mktemp("times"))

@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Mar:
    "Of the same name and version"
    return pack_source(tmp_path_factory.mktemp("other"), TIMES.replace("factor = 2", "factor = 666"))

def zipped(path: Path, members: dict[str, bytes], digest: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items(): z.writestr(name, data)
    if digest: path.with_name(path.name + ".sha256").write_text(digest)
    return path

MANIFEST = json.dumps({"model": {"modelName": "m", "modelVersion": "1", "handler": "m.py"}}).encode()


READINGS: list[str] = []     # of files named exchanged.mar, by this process

@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_an_exchanged_archive_is_never_served(times, other, server, tmp_path, nth):
    "From its nth reading on, the file is another archive of the same name and version: the one that was packed is served, or none"
    path = tmp_path / "exchanged.mar"
    shutil.copy(times.path, path)
    path.with_name("exchanged.mar.sha256").write_text(times.digest)
    READINGS.clear()

    def exchange(event, args):
        if event != "open" or str(args[0]) != str(path): return
        READINGS.append(str(path))
        if len(READINGS) == nth: shutil.copy(other.path, tmp_path / "new"), (tmp_path / "new").replace(path)
    sys.addaudithook(exchange)
    try: endpoint = deploy(server, path)
    except ToolkitError as e:
        assert "is not the archive that was packed" in str(e) and not list((server.folder / "store").glob("*"))
        return
    try: assert endpoint.predict({"n": 21}) == 42
    finally: endpoint.remove()

def test_moving_verifies_the_copy(times, tmp_path):
    "The store never gets other bytes under the digest that was packed"
    path = tmp_path / times.path.name
    path.write_bytes(times.path.read_bytes() + b"!")
    with pytest.raises(ToolkitError, match="is not the archive that was packed"): Mar(path, "times", "1.0", times.digest).move_to(tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())


def test_render_runs_nothing_of_an_archive(times, tmp_path):
    "Not even of one whose handler would leave a trace when it is imported"
    with zipfile.ZipFile(times.path) as z: members = {n: z.read(n) for n in z.namelist()}
    members["times.py"] = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode() + members["times.py"]
    mar = zipped(tmp_path / "times.mar", members)
    mar.with_name("times.mar.sha256").write_text(sha256(mar))
    render([mar], tmp_path / "deploy", image="zz:1")
    assert not (tmp_path / "ran").exists()

@pytest.mark.slow
def test_render_believes_only_its_keys(times, tmp_path):
    mar = times.move_to(tmp_path / "models")
    ours, public = new_key(tmp_path / "ours")
    zz = lambda: subprocess.run([Path(sys.executable).parent / "zz", "deploy", "render", mar.path, "--to", tmp_path / "deploy", "--image", "zz:1", "--keys", public], capture_output=True, text=True)
    assert (unsigned := zz()).returncode == 1 and "is not signed" in unsigned.stderr and not (tmp_path / "deploy" / "values.yaml").exists()
    sign(mar, new_key(tmp_path / "strangers")[0])
    assert "an untrusted key" in zz().stderr
    sign(mar, ours)
    assert (done := zz()).returncode == 0, done.stderr
    assert [p.suffix for p in sorted((tmp_path / "deploy" / "archives").iterdir())] == [".mar", ".sha256", ".sig"]

@pytest.mark.filterwarnings("ignore:.*has no .sha256")
def test_render_asks_that_somebody_vouches(times, tmp_path):
    shutil.copy(times.path, tmp_path / "times.mar")
    with pytest.raises(ToolkitError, match="nothing vouches for"): render([tmp_path / "times.mar"], tmp_path / "deploy", image="zz:1")

def test_the_example_of_the_dry_run_travels_with_the_archive(tmp_path):
    "What `helm test` sends is what the handler answered when it was packed"
    source = "from zztoolkit import Handler, vision as V\nclass Photos(Handler):\n    chain = V.Chain(V.Decode(), V.Resize(64), V.CenterCrop(64), V.Normalize())\n    def inference(self, xs): return [float(x.mean()) for x in xs]\n"
    mar = pack_source(tmp_path, source, "photos", None)
    release = render([mar.path], tmp_path / "deploy", image="zz:1")
    example = release.models[0]["example"]
    assert example["contentType"] == "application/octet-stream" and (release.folder / "chart" / example["file"]).read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.parametrize("mib, says", [(200, "unpacks to far more"), (40, "MANIFEST.json is too large")])
def test_a_bomb_costs_nothing(tmp_path, mib, says):
    "A manifest that inflates, under the digest of another file and under its own"
    bomb = zipped(tmp_path / "bomb.mar", {"MAR-INF/MANIFEST.json": MANIFEST + b" " * (mib << 20)}, "0" * 64)
    tracemalloc.start()
    with pytest.raises(ToolkitError, match="is not the archive that was packed"): open_mar(bomb)
    (tmp_path / "bomb.mar.sha256").write_text(sha256(bomb))
    with pytest.raises(ToolkitError, match=says): open_mar(bomb)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()

@pytest.mark.filterwarnings("ignore:.*has no .sha256")
@pytest.mark.parametrize("members, says", [
    ({"zeros.bin": bytes(150 << 20)}, "unpacks to far more"),
    ({f"f{i}": b"" for i in range(20_001)}, "holds too many files"),
    ({"../up.py": b""}, "outside its folder"), ({"/etc/x": b""}, "outside its folder")])
def test_what_no_archive_holds(tmp_path, members, says):
    with pytest.raises(ToolkitError, match=says): open_mar(zipped(tmp_path / "m.mar", {"MAR-INF/MANIFEST.json": MANIFEST} | members))

def test_honest_weights_pass(tmp_path):
    "Weights do not compress, and a table of zeros under 64 MiB may"
    weights = random.Random(0).randbytes(8 << 20)
    mar = zipped(tmp_path / "m.mar", {"MAR-INF/MANIFEST.json": MANIFEST, "w.bin": weights, "zeros.bin": bytes(60 << 20)})
    mar.with_name("m.mar.sha256").write_text(sha256(mar))
    assert open_mar(mar).name == "m"


def damaged(data: bytes, rng: random.Random) -> bytes:
    "One to eight bytes flipped, a cut, or bytes inserted"
    at, kind = rng.randrange(len(data)), rng.randrange(3)
    if kind == 0:
        made = bytearray(data)
        for _ in range(rng.randint(1, 8)): made[rng.randrange(len(made))] ^= rng.randint(1, 255)
        return bytes(made)
    return data[:at] if kind == 1 else data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]

def read_all(path: Path):
    "Whatever reads an archive without running it"
    mar = open_mar(path)
    model_values(mar), resources([mar]), mar.artifacts, example_of(mar)

@pytest.mark.filterwarnings("ignore:.*has no .sha256")
def test_300_damaged_archives(times, tmp_path):
    "Each can be read, or is refused with an error that names it"
    data, rng, path, refused = times.path.read_bytes(), random.Random(7), tmp_path / "damaged.mar", 0
    for _ in range(300):
        path.write_bytes(damaged(data, rng))
        try: read_all(path)
        except ToolkitError as e:
            refused += 1
            assert "damaged.mar" in str(e), e
    assert refused > 150

@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\x00", b"abc", None])
def test_digest_files_that_are_none(times, tmp_path, content):
    "Empty, not text, no digest, a folder: said, with the file's name"
    mar = times.move_to(tmp_path)
    beside = mar.path.with_name(mar.path.name + ".sha256")
    beside.unlink()
    beside.mkdir() if content is None else beside.write_bytes(content)
    with pytest.raises(ToolkitError, match=r"times\.mar\.sha256"): open_mar(mar.path)

@pytest.mark.filterwarnings("ignore:.*has no .sha256")
@pytest.mark.parametrize("members", [{"MAR-INF/MANIFEST.json": b"[]"}, {"MAR-INF/MANIFEST.json": b"[" * 100_000}, {"MAR-INF/MANIFEST.json": b'{"model": {"modelName": 3}}'}, {"MAR-INF/MANIFEST.json": b'{"model": {"modelName": "../x"}}'}, {"x": b""},
    {"MAR-INF/MANIFEST.json": MANIFEST.replace(b'"handler"', b'"configFile": "c.yaml", "handler"'), "c.yaml": b"minWorkers: many"},
    {"MAR-INF/MANIFEST.json": MANIFEST.replace(b'"handler"', b'"configFile": "c.yaml", "handler"'), "c.yaml": b"a: ["},
    {"MAR-INF/MANIFEST.json": MANIFEST.replace(b'"handler"', b'"configFile": "c.yaml", "handler"'), "c.yaml": b"- 1"},
    {"MAR-INF/MANIFEST.json": MANIFEST, "artifact/artifact.json": b"{"}])
def test_whole_files_that_say_nonsense(tmp_path, members):
    with pytest.raises(ToolkitError, match="m.mar"): read_all(zipped(tmp_path / "m.mar", members))


@pytest.mark.slow
def test_a_handler_section_is_packed(tmp_path):
    "TorchServe's examples keep a handler's own settings under `handler:`"
    (tmp_path / "config.yaml").write_text("handler: {factor: 5}\nbatchSize: 2\n")
    source = TIMES.replace("self.factor", "self.config['handler']['factor']")
    mar = pack_source(tmp_path, source, settings=tmp_path / "config.yaml", maxBatchDelay=7)
    assert mar.config["handler"] == {"factor": 5} and (mar.config["batchSize"], mar.config["maxBatchDelay"]) == (2, 7)
    zz = subprocess.run([Path(sys.executable).parent / "zz", "archive", tmp_path / "times.py", "--config", tmp_path / "config.yaml", "--store", tmp_path / "cli", "--batch-size", "4"], capture_output=True, text=True)
    assert zz.returncode == 0, zz.stderr
    assert (config := open_mar(tmp_path / "cli" / "times.mar").config)["handler"] == {"factor": 5} and config["batchSize"] == 4

def test_threads_and_children_do_not_hang_the_dry_run(tmp_path):
    source = TIMES + """
    def initialize(self, context):
        import subprocess, threading, time
        super().initialize(context)
        threading.Thread(target=time.sleep, args=(600,)).start()
        self.child = subprocess.Popen(["sleep", "600"])
    """
    assert pack_source(tmp_path, source).dry_run_passed

def test_a_crash_says_where(tmp_path):
    source = TIMES + "\n    def initialize(self, context):\n        import ctypes\n        ctypes.string_at(0)\n"
    with pytest.raises(ToolkitError, match="SIGSEGV") as e: pack_source(tmp_path, source)
    assert "Segmentation fault" in e.value.found and "times.py" in e.value.found and "in initialize" in e.value.found

@pytest.mark.slow
def test_built_in_handlers_of_torchserve(tmp_path):
    "Named as torch-model-archiver names them"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "net.pt"))
    mar = pack("stock", "base_handler", tmp_path / "net.pt", store=tmp_path)
    with zipfile.ZipFile(mar.path) as z: assert json.loads(z.read("MAR-INF/MANIFEST.json"))["model"]["handler"] == "base_handler"
    with pytest.raises(ToolkitError, match="or a handler that TorchServe brings: base_handler"): pack("stock", "image_clasifier", tmp_path / "net.pt", store=tmp_path)
    if importlib.util.find_spec("torchvision"): return
    with pytest.raises(ToolkitError, match="(?s)torchvision.*install that package"): pack("stock", "image_classifier", tmp_path / "net.pt", store=tmp_path)


@pytest.mark.slow
def test_digests_stay_inside_the_artifact(lite0, tmp_path):
    "A digest of ../x is no file of the artifact, whatever artifact.json's own digest says"
    from zztoolkit.compile.store import _digest
    shutil.copytree(lite0.path, tmp_path / "artifact")
    (tmp_path / "x").write_text("x")
    d = json.loads((tmp_path / "artifact" / "artifact.json").read_text())
    d["digests"]["../x"] = sha256(tmp_path / "x")
    (tmp_path / "artifact" / "artifact.json").write_text(json.dumps(d | {"digest": _digest(d)}))
    with pytest.raises(ToolkitError, match="outside"): load_artifact(tmp_path / "artifact")


TABLE = """
import pandas as pd
from zztoolkit import Handler
class Rows(Handler):
    def preprocess(self, requests): return pd.DataFrame(requests)
    def inference(self, df): return (df["a"] - df["b"]).tolist()
    def postprocess(self, ys): return [{"high": bool(y > 0)} for y in ys]
"""
NEIGHBOURS = {
    "a missing column is answered beside others": (TABLE, "NaN"),
    "shares of the whole batch": (TABLE.replace('(df["a"] - df["b"]).tolist()', '(df["a"] / df["a"].max()).tolist()').replace('{"high": bool(y > 0)}', "y"), "with a different one"),
    "dummies of the columns at hand": (TABLE.replace('(df["a"] - df["b"]).tolist()', 'pd.get_dummies(df["a"]).astype(int).values.tolist()').replace('{"high": bool(y > 0)}', "y"), "with a different one"),
    "one error for all": ("from zztoolkit import Handler\nfrom zztoolkit.batch import Batch\nclass Rows(Handler):\n    def preprocess(self, requests):\n        bad = any('a' not in r for r in requests)\n        return Batch([], (), {i: ValueError('a') for i in range(len(requests))}) if bad else list(requests)\n"
                          "    def inference(self, xs): return [x['a'] for x in xs]\n", "with a broken one")}

@pytest.mark.slow
@pytest.mark.parametrize("what", NEIGHBOURS)
def test_answers_that_depend_on_neighbours(what, tmp_path):
    source, says = NEIGHBOURS[what]
    with pytest.raises(ToolkitError, match="depends on the other requests") as e: pack_source(tmp_path, source, "rows", {"a": 3, "b": 1}, batchSize=4)
    assert says in str(e.value) and "Batch.map" in e.value.do and not (tmp_path / "store" / "rows.mar").exists(), e.value

@pytest.mark.slow
def test_any_missing_field_is_tried(tmp_path):
    "Whichever comes first in the example"
    source = TABLE.replace('(df["a"] - df["b"]).tolist()', '(df["a"] * df["b"].fillna(1)).tolist()').replace('{"high": bool(y > 0)}', "y")
    for example in ({"a": 3, "b": 1}, {"b": 1, "a": 3}):
        with pytest.raises(ToolkitError, match="depends on the other requests"): pack_source(tmp_path, source, "rows", example, batchSize=4)

def test_what_is_meant_is_packed_with_a_warning(tmp_path):
    source, _ = NEIGHBOURS["shares of the whole batch"]
    with pytest.warns(UserWarning, match="depends on the other requests"): assert pack_source(tmp_path, source, "rows", {"a": 3, "b": 1}, batchSize=4, isolation="warn").dry_run_passed

def test_our_words_are_taken_and_misspelt_ones_are_not(tmp_path):
    mar = pack_source(tmp_path, TIMES, batch_size=4, workers=2, max_batch_delay=7, limit_of_mine=3)
    assert {k: mar.config[k] for k in ("batchSize", "minWorkers", "maxBatchDelay", "limit_of_mine")} == {"batchSize": 4, "minWorkers": 2, "maxBatchDelay": 7, "limit_of_mine": 3}
    with pytest.raises(ToolkitError, match="no such setting: batchsize\n.*did you mean batch_?[sS]ize"): pack_source(tmp_path, TIMES, batchsize=4)

@pytest.mark.slow
@pytest.mark.parametrize("source", [TABLE.replace("bool(y > 0)", "y"), TIMES.replace('x["n"]', '[x["n"] / 7, len(xs)]'), TIMES.replace("self.factor * ", "1e-7 * len(xs) + ")])
def test_independent_answers_pass(source, tmp_path):
    "A broken request fails by itself; how many were in the batch may be told; last digits may change"
    assert pack_source(tmp_path, source, "rows", {"a": 3, "b": 1, "n": 1}, batchSize=4).dry_run_passed

def test_random_answers_are_not_compared(tmp_path):
    with pytest.warns(UserWarning, match="differs from one call to the next"): pack_source(tmp_path, "import random\n" + TIMES.replace("self.factor", "random.random()"), batchSize=4)

@pytest.mark.slow
def test_a_foreign_handler_is_only_warned_of(tmp_path):
    "TorchServe's own handlers fail with their whole batch; what one answers must not change all the same"
    plain = "import json\nclass Plain:\n    def initialize(self, context): pass\n    def handle(self, data, context): return [r['body']['n'] * {} for r in data]\n"
    with pytest.warns(UserWarning, match="fails its whole batch"): pack_source(tmp_path, plain.format(2), "plain", batchSize=4)
    with pytest.raises(ToolkitError, match="depends on the other requests"): pack_source(tmp_path, plain.format("max(r['body']['n'] for r in data)"), "plain", batchSize=4)


PHOTOS = """
from zztoolkit import Handler, vision as V
class Photos(Handler):
    chain = V.Chain(V.Decode(), V.Resize(64), V.CenterCrop(64), V.Normalize())
    def inference(self, xs): return [float(x.std()) for x in xs]
"""
CHAIN = V.Chain(V.Decode(), V.Resize(64), V.CenterCrop(64), V.Normalize())

@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    "Finer than a pixel of the result: the fast plan is far from exact"
    rows = (127 + 127 * np.sin(2 * np.pi * np.mgrid[:1024, :1024][0] / 9)).astype(np.uint8)
    path = tmp_path_factory.mktemp("lines") / "lines.jpg"
    PIL.Image.fromarray(rows).save(path, quality=90)
    return path

@pytest.mark.slow
def test_a_plan_beyond_the_tolerance_is_served_exactly(tmp_path, lines, server):
    with pytest.warns(UserWarning, match="photos serves the exact plan: the mean difference of an image is"): mar = pack_source(tmp_path, PHOTOS, "photos", lines)
    assert mar.config["exact"] is True and mar.agreement.exact and mar.agreement.images == 1 and mar.agreement.worst_mean_255 > 2
    assert repr(open_mar(mar.path)).splitlines() == [str(mar), mar.plan] and mar.plan.startswith("serves the exact plan: the mean difference")
    endpoint = deploy(server, mar)
    try: answer = endpoint.predict(lines)
    finally: endpoint.remove()
    assert answer == pytest.approx(float(CHAIN.with_exact()(lines).std()), rel=1e-5) and answer != pytest.approx(float(CHAIN(lines).std()), rel=0.1)

@pytest.mark.slow
def test_a_plan_within_the_tolerance_is_recorded(tmp_path, photo):
    "Of the sample photograph without an example, and the same bytes each time"
    mar = pack_source(tmp_path, PHOTOS, "photos", None)
    assert mar.digest == pack_source(tmp_path / "again", PHOTOS, "photos", None).digest
    measured = V.measure_plan(CHAIN, [photo])
    assert "exact" not in mar.config and mar.agreement.mean_255 == pytest.approx(measured.mean_255, abs=1e-6) and mar.agreement.largest_255 > 1
    assert mar.plan.startswith("serves the fast plan: within the tolerance (1 image: largest difference")
    assert Agreement(**json.loads(json.dumps(asdict(mar.agreement)))) == mar.agreement
    assert with_config(mar, tmp_path / "workers", minWorkers=2).agreement == mar.agreement
    assert with_config(mar, tmp_path / "gap", reducing_gap=3).agreement is None       # of another plan

@pytest.mark.slow
def test_exact_is_one_word(tmp_path, lines):
    "True is not measured, False is measured and stays fast; in a configuration too"
    exact = pack_source(tmp_path, PHOTOS, "photos", lines, exact=True)
    assert exact.config["exact"] is True and exact.agreement.images == 0 and exact.plan == "serves the exact plan: given exact=True"
    assert pack_source(tmp_path, PHOTOS, "photos", lines, settings={"exact": True}).digest == exact.digest
    fast = pack_source(tmp_path, PHOTOS, "photos", lines, exact=False)
    assert fast.config["exact"] is False and fast.agreement.worst_mean_255 > 2 and "given exact=False, although the mean difference" in fast.plan
    own = pack_source(tmp_path, PHOTOS.replace("Normalize())", "Normalize(), exact=True)"), "photos", lines)
    assert own.plan == "serves the exact plan: the chain says exact=True" and "exact" not in own.config

def test_exact_on_the_command_line(tmp_path):
    (tmp_path / "photos.py").write_text(PHOTOS)
    done = subprocess.run([Path(sys.executable).parent / "zz", "archive", "photos.py", "--store", "store", "--exact"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "serves the exact plan: given exact=True" in done.stdout, done.stderr
    assert open_mar(tmp_path / "store" / "photos.mar").config["exact"] is True

def test_exact_needs_a_chain(tmp_path):
    with pytest.raises(ToolkitError, match="exact is for a handler with a chain"): pack_source(tmp_path, TIMES, exact=True)
    with pytest.raises(ToolkitError, match="exact is True or False\n'yes'"): pack_source(tmp_path, PHOTOS, "photos", None, exact="yes")

@pytest.mark.slow
def test_examples_are_a_folder_or_a_list(tmp_path, lines, photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3): shutil.copy(photo, folder / f"{i}.jpg")
    (folder / "notes.txt").write_text("no image")
    for example in (str(folder), [photo, PIL.Image.open(photo), str(photo)]):
        assert pack_source(tmp_path, PHOTOS, "photos", example).agreement.images == 3
    with pytest.warns(UserWarning, match=r"\(2 images: "): assert pack_source(tmp_path, PHOTOS, "photos", [photo, lines]).agreement.exact
    (folder / "broken.jpg").write_bytes(photo.read_bytes()[:9000])
    with pytest.raises(ToolkitError, match="(?s)rejects the example.*broken.jpg: broken JPEG"): pack_source(tmp_path, PHOTOS, "photos", folder)
    with pytest.raises(ToolkitError, match="no images in"): pack_source(tmp_path, PHOTOS, "photos", str(tmp_path / "store"))
    assert pack_source(tmp_path, TIMES.replace('x["n"]', "x[0]"), example=[3, 4]).dry_run_passed        # a list is one request to others

@pytest.mark.slow
def test_a_preprocess_of_its_own_is_measured_on_what_its_chain_takes(tmp_path, photo):
    own = PHOTOS.replace("    def inf", "    def preprocess(self, requests): return self.chain.batch([bytes(r) if isinstance(r, bytearray) else r['photo'].encode() for r in requests])\n    def inf")
    assert pack_source(tmp_path, own, "photos", photo).agreement.images == 1
    both = PHOTOS.replace("    def inf", "    def preprocess(self, requests): return [len(r) for r in requests]\n    def inf").replace("float(x.std())", "x")
    assert pack_source(tmp_path, both, "photos", [photo, photo]).agreement is None             # to it, a list is one request

@pytest.mark.slow
def test_the_model_of_the_archive_decides(tmp_path, lite0):
    "Two of the large photographs get another name from the fast plan: EfficientNet-Lite0 is served exactly"
    photos = samples.large_photographs()
    with pytest.warns(UserWarning, match="serves the exact plan: top-1 is the same for"):
        mar = pack("classifier", ROOT / "handlers" / "imagenet_classifier.py", lite0, store=tmp_path, extra_files=[samples.imagenet_labels()], example=photos)
    assert mar.config["exact"] and mar.agreement.top1 < 1 and mar.agreement.images == len(photos)

RECORDS = "from zztoolkit import Handler\nclass Records(Handler):\n    def inference(self, xs): return [0] * len(next(iter(xs.values())))\n"

@pytest.mark.slow
def test_text_is_a_record_to_features(tmp_path):
    import pandas as pd
    from zztoolkit.features.features import Features
    from zztoolkit.features.ops.encode import Categorify
    features = Features([Categorify("brand")]).fit(pd.DataFrame({"brand": ["acer", "dell"]}))
    assert pack_source(tmp_path, RECORDS, "records", '{"brand": "acer"}', features=features).dry_run_passed
    with pytest.raises(ToolkitError, match="(?s)rejects the example.*there is no file recrod.json, so it was sent as text"): pack_source(tmp_path, RECORDS, "records", "recrod.json", features=features)

@pytest.mark.slow
def test_a_mistyped_file_is_named(tmp_path):
    words = "from zztoolkit import Handler\nclass Words(Handler):\n    def preprocess(self, requests): return [r.split() for r in requests]\n    def inference(self, xs): return xs\n"
    with pytest.warns(UserWarning, match="--example: there is no file texts/one"): pack_source(tmp_path, words, "words", "texts/one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack_source(tmp_path, words, "words", "either/or, and so on.")

def test_a_file_name_that_is_no_module_gets_one(tmp_path):
    for stem, says in (("tiny-model", "rename it to tiny_model.py; the model can keep its name: zz archive tiny_model.py --name tiny-model"), ("3d net", "rename it to handler_3d_net.py")):
        (tmp_path / f"{stem}.py").touch()
        with pytest.raises(ToolkitError) as e: check_handler_file(tmp_path / f"{stem}.py")
        assert e.value.do == says
