"Offline runs that are killed, in real processes; what comes out is compared byte for byte with an unbroken run's."
import os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, psutil, pyarrow as pa, pyarrow.parquet as pq, pytest

from conftest import ROOT
from zztoolkit import demo, offline
from zztoolkit.archive import archive
from zztoolkit.core import ToolkitError

N = 200_000
SCORER = """
import math, os, signal, time
from zztoolkit import Handler
from zztoolkit.core import Batch, InputError

def features(row):
    for name in ("price", "age"):
        if name not in row: raise InputError(f"{name} is missing")
        x = row[name]
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not -2**53 <= x <= 2**53: raise InputError(f"{name} must be a number, got {x!r}")
    if row.get("kill") == 1: os.kill(os.getpid(), signal.SIGKILL)
    if row.get("kill") == 2: time.sleep(60)
    return row["price"] * 0.9 - row["age"] / 365

class Scorer(Handler):
    def preprocess(self, requests): return Batch.of(requests).map(features)
    def inference(self, xs): return xs
    def postprocess(self, xs): return [{"score": round(x, 4), "sell": x > 50} for x in xs]
"""

def contents(sink: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(sink.glob("*.parquet"))}

def started(mar: Path, source: Path, sink: Path, *args: str, parts: int = 2, timeout: float = 60) -> subprocess.Popen:
    "`zz offline` in a group of its own, in the middle of its work"
    zz = Path(sys.executable).with_name("zz")
    proc = subprocess.Popen([zz, "offline", mar, source, sink, *args], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + timeout
    while len(list(sink.glob("part-*"))) < parts:
        assert proc.poll() is None and time.monotonic() < end, proc.returncode
        time.sleep(0.01)
    return proc

def family(proc: subprocess.Popen) -> list[psutil.Process]: return psutil.Process(proc.pid).children(recursive=True)

@pytest.fixture(scope="session")
def scorer(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("scorer")
    (home / "scorer.py").write_text(SCORER)
    return archive("scorer", home / "scorer.py", store=home, example={"price": 1, "age": 1}).path

@pytest.fixture(scope="session")
def items(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("items") / "items.parquet"
    price = rng.gamma(2, 50, N).round(2)
    price[::1000] = np.nan
    pq.write_table(pa.table({"id": [f"item-{i}" for i in range(N)], "price": price, "age": rng.integers(0, 3000, N)}), path, row_group_size=70_000)
    return path

@pytest.fixture(scope="session")
def unbroken(scorer, items, tmp_path_factory) -> dict[str, bytes]:
    sink = tmp_path_factory.mktemp("unbroken")
    run = offline.run(scorer, items, sink, key="id", chunk=5000)
    assert (run.rows, run.refused) == (N, N // 1000) and len(list(sink.glob("part-*"))) == 40
    answers, why = offline.read(sink), offline.refused(sink)
    assert list(answers.columns) == ["id", "score", "sell"] and len(answers) == N - N // 1000
    assert answers.id.tolist() == [f"item-{i}" for i in range(N) if i % 1000]
    assert why.id.tolist() == [f"item-{i}" for i in range(0, N, 1000)] and set(why.status) == {422} and set(why.reason) == {"price must be a number, got nan"}
    table = pq.read_table(items).to_pandas()
    np.testing.assert_allclose(answers.score, (table.price * 0.9 - table.age / 365)[table.price.notna()], atol=6e-5)
    return contents(sink)

@pytest.mark.parametrize("engine", ["local", "ray"])
def test_killed_in_the_middle(scorer, items, unbroken, tmp_path, engine):
    "kill -9 of the whole run: the same call goes on, nothing twice, nothing lost"
    if engine == "ray": pytest.importorskip("ray") if not os.environ.get("CI") else __import__("ray")
    sink, options = tmp_path / "sink", ["--key", "id", "--chunk", "5000", "--engine", engine]
    proc = started(scorer, items, sink, *options, parts=5, timeout=120)
    left = family(proc)
    os.killpg(proc.pid, signal.SIGKILL)
    proc.wait()
    there = contents(sink)
    assert 5 <= len(list(sink.glob("part-*"))) < 40
    assert all(unbroken[n] == b for n, b in there.items() if n.startswith("part")), "a part is whole or not there"
    (sink / ".part-00039.parquet.gone.1").write_bytes(b"half of a part")
    assert not psutil.wait_procs(left, 15)[1]
    run = offline.run(scorer, items, sink, key="id", chunk=5000, engine=engine, processes=2)
    assert run.there >= 25_000 and run.rows == N
    assert contents(sink) == unbroken and not list(sink.glob(".part*")) and not (sink / ".work").exists()
    assert not [p for p in psutil.Process().children(recursive=True) if "offline import _work" in " ".join(p.cmdline())]

def test_killed_worker_and_second_run(scorer, items, unbroken, tmp_path):
    "kill -9 of one worker, twice: the run goes on by itself. A second run on its sink is refused"
    sink = tmp_path / "sink"
    proc = started(scorer, items, sink, "--key", "id", "--chunk", "5000", parts=1)
    try:
        with pytest.raises(ToolkitError, match="another run is at work"): offline.run(scorer, items, sink, key="id", chunk=5000)
        for _ in range(2):
            workers = [p for p in family(proc) if "offline import _work" in " ".join(p.cmdline())]
            workers[0].kill()
            time.sleep(0.2)
        assert proc.wait(60) == 0
    finally:
        proc.kill()
        proc.wait()
    assert contents(sink) == unbroken

def test_ctrl_c(scorer, items, unbroken, tmp_path):
    sink = tmp_path / "sink"
    proc = started(scorer, items, sink, "--key", "id", "--chunk", "5000")
    left = family(proc)
    os.killpg(proc.pid, signal.SIGINT)
    assert proc.wait(20) != 0 and not psutil.wait_procs(left, 10)[1]
    kept = contents(sink)
    assert kept and kept.items() <= unbroken.items()

@pytest.mark.parametrize("how, batch, says", [(1, 4, "its process was ended by SIGKILL (out of memory?)"), (2, 1, "no answer in 2 s")])
def test_a_row_that_ends_its_process(scorer, tmp_path, how, batch, says):
    "It is found among its batch and put aside; every other row has its answer"
    kill = [0] * 40
    kill[21] = how
    pq.write_table(pa.table({"price": [100.0] * 40, "age": [365] * 40, "kill": kill}), tmp_path / "deadly.parquet")
    offline.run(scorer, tmp_path / "deadly.parquet", tmp_path / "sink", chunk=20, batch=batch, processes=1, timeout=2)
    why = offline.refused(tmp_path / "sink")
    assert why[["row", "status", "type"]].values.tolist() == [[21, 500, "Died"]] and why.reason[0] == says
    assert offline.read(tmp_path / "sink").row.tolist() == [i for i in range(40) if i != 21]

def test_photographs(lite0, photos, tmp_path):
    "Photographs, some of them broken; the answers are those of the handler in this process"
    import PIL.Image
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for i in range(60):
        img = PIL.Image.open(photos[i % len(photos)]).convert("RGB").resize((400, 300 + i))
        img.save(tmp_path / "photos" / ("more" if i % 2 else ".") / f"{i:02d}.jpg")
    whole = (tmp_path / "photos" / "00.jpg").read_bytes()
    for name, body in (("cut.jpg", whole[:2000]), ("text.png", b"no image"), ("empty.webp", b"")): (tmp_path / "photos" / name).write_bytes(body)
    mar = archive("classifier", ROOT / "handlers" / "imagenet_classifier.py", lite0, store=tmp_path, extra_files=[demo.imagenet_labels()], batchSize=8)
    run = offline.run(mar, tmp_path / "photos", tmp_path / "sink", chunk=16, batch=8)
    assert (run.rows, run.refused) == (63, 3)
    why = offline.refused(tmp_path / "sink").set_index("file")
    assert set(why.index) == {"cut.jpg", "text.png", "empty.webp"} and set(why.status) == {400}
    assert "truncated" in why.reason["cut.jpg"] and "not an image" in why.reason["text.png"] and "empty" in why.reason["empty.webp"]
    answers = offline.read(tmp_path / "sink")
    assert answers.file.is_monotonic_increasing and len(answers) == 60
    online = local(tmp_path, lite0).predict([tmp_path / "photos" / f for f in answers.file[:8]])
    for a, b in zip(answers.answer, online): assert [x["label"] for x in a] == [x["label"] for x in b]

def local(folder: Path, artifact):
    from importlib.util import module_from_spec, spec_from_file_location
    spec = spec_from_file_location("imagenet_classifier", ROOT / "handlers" / "imagenet_classifier.py")
    spec.loader.exec_module(module := module_from_spec(spec))
    return module.ImagenetClassifier.local(artifact, folder=demo.imagenet_labels().parent, threads=1)

BAD_ROWS = {     # the line, and what is said of it
    b"a,cheap,1": "price must be a number, got 'cheap'", b"b,,1": "price must be a number, got None", b"c,nan,1": "got nan", b"d,-inf,1": "got -inf",
    b"e,1e999,1": "got inf", b"f,1,123456789012345678901234567890": "age must be a number, got 123456789012345678901234567890", b"g,1": "2 cells where the header names 3",
    b"h,1,2024-13-45": "age must be a number, got '2024-13-45'", b"i\xe9,1,1": "column id: not UTF-8: byte 0xe9 at position 1", b"j,1,1,1": "4 cells where the header names 3", b"k,1_000,1": "got '1_000'"}

@pytest.mark.parametrize("batch", [1, 64])
def test_bad_rows_of_a_csv(scorer, tmp_path, batch):
    lines = [b"good%d,%d.5,3" % (i, i) for i in range(200)]
    for i, bad in enumerate(BAD_ROWS): lines.insert(7 * i + 3, bad)
    (tmp_path / "items.csv").write_bytes(b"id,price,age\n" + b"\n".join(lines))
    run = offline.run(scorer, tmp_path / "items.csv", tmp_path / "sink", key="id", chunk=50, batch=batch, processes=1)
    why = offline.refused(tmp_path / "sink")
    assert run.refused == len(BAD_ROWS) and why.row.tolist() == [7 * i + 3 for i in range(len(BAD_ROWS))]
    for reason, says in zip(why.reason, BAD_ROWS.values()): assert says in reason
    assert offline.read(tmp_path / "sink").id.tolist() == [f"good{i}" for i in range(200)]

def test_missing_column(scorer, tmp_path):
    pq.write_table(pa.table({"age": [1, 2]}), tmp_path / "half.parquet")
    assert offline.run(scorer, tmp_path / "half.parquet", tmp_path / "sink").refused == 2
    assert set(offline.refused(tmp_path / "sink").reason) == {"price is missing"}

def test_another_run_is_refused(scorer, items, tmp_path):
    source, sink = tmp_path / "few.parquet", tmp_path / "sink"
    pq.write_table(pq.read_table(items).slice(0, 50), source)
    before = offline.run(scorer, source, sink, chunk=20, processes=1)
    for kw, says in (({"chunk": 10}, "settings chunk: it was 20, it is 10"), ({"key": "id"}, "settings key: it was row, it is id"), ({"answers": "json"}, "settings answers")):
        with pytest.raises(ToolkitError, match=says): offline.run(scorer, source, sink, **({"chunk": 20} | kw))
    (tmp_path / "scorer.py").write_text(SCORER.replace("0.9", "0.8"))
    other = archive("scorer", tmp_path / "scorer.py", store=tmp_path, example={"price": 1, "age": 1})
    with pytest.raises(ToolkitError, match="handler digest"): offline.run(other, source, sink, chunk=20)
    pq.write_table(pq.read_table(items).slice(1, 50), source)
    with pytest.raises(ToolkitError, match="source digest"): offline.run(scorer, source, sink, chunk=20)
    kept = contents(sink)
    offline.run(scorer, source, sink, chunk=20, restart=True, processes=1)
    assert contents(sink) != kept and before.rows == 50

def test_a_handler_that_does_not_load(items, scorer, tmp_path):
    "The engineer's own traceback; a handler of TorchServe's own kind is told apart"
    import zipfile
    for name, change, says in (("broken", ("class Scorer(Handler):", "class Scorer(Handler):\n    def initialize(self, context): open('weights.bin')"), "scorer.py.*No such file or directory: 'weights.bin'"),
                               ("plain", ("class Scorer(Handler):", "class Scorer:\n    def initialize(self, context): pass\n    def handle(self, data, context): return [1]"), "only a zztoolkit Handler runs offline")):
        folder = tmp_path / name
        with zipfile.ZipFile(scorer) as z: z.extractall(folder)
        (folder / "scorer.py").write_text(SCORER.replace(*change))
        with pytest.raises(ToolkitError, match=f"(?s){says}"): offline.run(folder, items, tmp_path / "sink" / name, processes=1)

def test_a_tampered_archive(scorer, items, tmp_path):
    for p in (scorer, scorer.with_name("scorer.mar.sha256")): (tmp_path / p.name).write_bytes(p.read_bytes())
    with open(tmp_path / "scorer.mar", "ab") as f: f.write(b"more")
    with pytest.raises(ToolkitError, match="is not the archive that was packed"): offline.run(tmp_path / "scorer.mar", items, tmp_path / "sink")
