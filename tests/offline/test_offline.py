"Offline runs that are killed, in real processes; what comes out is compared byte for byte with an unbroken run's."
import json, os, signal, subprocess, sys, time, zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np, pandas as pd, psutil, pyarrow as pa, pyarrow.parquet as pq, pytest
from typer.testing import CliRunner

from conftest import ROOT
from zztoolkit import samples, offline
from zztoolkit.cli.main import app
from zztoolkit.offline.executors import connect_ray
from zztoolkit.archive.packing import pack
from zztoolkit.errors import ToolkitError
from zztoolkit.features.features import Features
from zztoolkit.features.ops.encode import Categorify, FillMissing
from zztoolkit.features.ops.scale import Normalize
from zztoolkit.features.ops.sequences import DateParts, ListPad
from zztoolkit.offline.parts import _write_errors, write_manifest
from zztoolkit.offline.sources.opening import open_source, read_chunk

N, CHUNK = 20_000, 1_000
RUN = {"key": "id", "chunk": CHUNK}
SCORER = """
import math, os, signal, time
from zztoolkit import Handler
from zztoolkit.batch import Batch; from zztoolkit.errors import InputError

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
    def inference(self, xs):
        time.sleep(float(os.environ.get("SLOWLY", 0)))
        return xs
    def postprocess(self, xs): return [{"score": round(x, 4), "sell": x > 50} for x in xs]
"""

def contents(sink: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(sink.glob("*.parquet"))}

def started(mar: Path, source: Path, sink: Path, *args: str, parts: int = 2, timeout: float = 120, **env: str) -> subprocess.Popen:
    "`zz offline` in a group of its own, slowed down, in the middle of its work: `parts` more are done"
    zz, before = Path(sys.executable).with_name("zz"), len(list(sink.glob("part-*")))
    proc = subprocess.Popen([zz, "offline", mar, source, sink, "--key", "id", "--chunk", str(CHUNK), *args], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"SLOWLY": "0.2"} | env)
    end = time.monotonic() + timeout
    while len(list(sink.glob("part-*"))) < before + parts:
        assert proc.poll() is None and time.monotonic() < end, proc.returncode
        time.sleep(0.01)
    return proc

def family(pid: int) -> list[psutil.Process]: return psutil.Process(pid).children(recursive=True)

def workers(pid: int) -> list[psutil.Process]: return [p for p in family(pid) if is_worker(p)]

def is_worker(p: psutil.Process) -> bool:
    try: return "import serve_tasks" in " ".join(p.cmdline())
    except psutil.NoSuchProcess: return False     # it has just ended

@pytest.fixture(scope="session")
def scorer(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("scorer")
    (home / "scorer.py").write_text(SCORER)
    return pack("scorer", home / "scorer.py", store=home, example={"price": 1, "age": 1}).path

@pytest.fixture(scope="session")
def items(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("items") / "items.parquet"
    price = rng.gamma(2, 50, N).round(2)
    price[::1000] = np.nan
    pq.write_table(pa.table({"id": [f"item-{i}" for i in range(N)], "price": price, "age": rng.integers(0, 3000, N)}), path, row_group_size=7_000)
    return path

@pytest.fixture(scope="session")
def unbroken(scorer, items, tmp_path_factory) -> dict[str, bytes]:
    sink = tmp_path_factory.mktemp("unbroken")
    run = offline.run(scorer, items, sink, **RUN)
    assert (run.rows, run.rejected) == (N, N // 1000) and len(list(sink.glob("part-*"))) == N // CHUNK
    answers, why = offline.read(sink), offline.rejected(sink)
    assert list(answers.columns) == ["id", "score", "sell"] and len(answers) == N - N // 1000
    assert answers.id.tolist() == [f"item-{i}" for i in range(N) if i % 1000]
    assert why.id.tolist() == [f"item-{i}" for i in range(0, N, 1000)] and set(why.status) == {422} and set(why.reason) == {"price must be a number, got nan"}
    table = pq.read_table(items).to_pandas()
    np.testing.assert_allclose(answers.score, (table.price * 0.9 - table.age / 365)[table.price.notna()], atol=6e-5)
    return contents(sink)

@pytest.mark.slow
def test_a_run_that_is_interrupted_and_killed(scorer, items, unbroken, tmp_path):
    "Ctrl-C, then the death of workers, then kill -9 of the whole run: each time the same call goes on, nothing twice, nothing lost"
    sink = tmp_path / "sink"
    proc = started(scorer, items, sink, "--processes", "1")
    left = family(proc.pid)
    os.killpg(proc.pid, signal.SIGINT)
    assert proc.wait(20) != 0 and not psutil.wait_procs(left, 10)[1]
    kept = contents(sink)
    assert kept and kept.items() <= unbroken.items()

    proc = started(scorer, items, sink)
    with pytest.raises(ToolkitError, match="another run is at work"): offline.run(scorer, items, sink, **RUN)
    seen = len(contents(sink))
    while len(dead := workers(proc.pid)) < 2: time.sleep(0.01)
    for p in dead: p.kill()
    while len(contents(sink)) < seen + 4: assert proc.poll() is None; time.sleep(0.01)
    assert not {p.pid for p in dead} & {p.pid for p in workers(proc.pid)}, "others took their place"
    killed(proc, sink, unbroken)
    resumed(scorer, items, sink, unbroken, "local")

@pytest.mark.slow
def test_a_run_on_ray_that_is_killed(scorer, items, unbroken, tmp_path, monkeypatch):
    "By kill -9 of who started it, on a cluster that lives on; then from this process, on the same cluster"
    pytest.importorskip("ray") if not os.environ.get("CI") else __import__("ray")
    monkeypatch.setenv("SLOWLY", "0.05")      # of the cluster's workers
    with connect_ray(1) as ray:
        address = ray.get_runtime_context().gcs_address
        killed(started(scorer, items, tmp_path / "sink", "--engine", "ray", "--processes", "1", RAY_ADDRESS=address), tmp_path / "sink", unbroken)
        resumed(scorer, items, tmp_path / "sink", unbroken, "ray")
    assert not ray.is_initialized()

def killed(proc: subprocess.Popen, sink: Path, unbroken: dict[str, bytes]):
    "kill -9 of the group: no process stays behind, and what it left is whole"
    left = family(proc.pid) + workers(os.getpid())     # on a cluster, workers are no children of who began the run
    assert left
    os.killpg(proc.pid, signal.SIGKILL)
    proc.wait()
    assert not psutil.wait_procs(left, 15)[1]
    there = contents(sink)
    assert 2 <= len(list(sink.glob("part-*"))) < N // CHUNK
    assert all(unbroken[n] == b for n, b in there.items() if n.startswith("part")), "a part is whole or not there"

def resumed(scorer: Path, items: Path, sink: Path, unbroken: dict[str, bytes], executor: str):
    (sink / ".part-00019.parquet.gone.1").write_bytes(b"half of a part")
    processes = 1 if executor == "ray" else 2      # as many as the cluster has
    run = offline.run(scorer, items, sink, executor=executor, processes=processes, **RUN)
    assert run.done_before >= 2 * CHUNK and run.rows == N
    assert contents(sink) == unbroken and not list(sink.glob(".part*")) and not (sink / ".work").exists()
    assert not psutil.wait_procs(workers(os.getpid()), 15)[1]

@pytest.mark.slow
def test_rows_that_end_their_process(scorer, tmp_path):
    "One by a signal, found among its batch; one that never ends. Both are put aside, every other row has its answer"
    kill = [0] * 41
    kill[21], kill[40] = 1, 2
    pq.write_table(pa.table({"price": [100.0] * 41, "age": [365] * 41, "kill": kill}), tmp_path / "deadly.parquet")
    offline.run(scorer, tmp_path / "deadly.parquet", tmp_path / "sink", chunk=20, batch=4, processes=2, timeout=2)
    why = offline.rejected(tmp_path / "sink")
    assert why[["row", "status", "type"]].values.tolist() == [[21, 500, "Died"], [40, 500, "Died"]]
    assert why.reason.tolist() == ["its process was ended by SIGKILL (out of memory?)", "no response in 2 s"]
    assert offline.read(tmp_path / "sink").row.tolist() == [i for i in range(40) if i != 21]

def imported(path: Path):
    spec = spec_from_file_location(path.stem, path)
    spec.loader.exec_module(module := module_from_spec(spec))
    return module

def test_photographs(tiny, photos, tmp_path):
    "Photographs, some of them broken; the answers are those of the handler in this process"
    import PIL.Image
    (tmp_path / "photos" / "more").mkdir(parents=True)
    shots = [PIL.Image.open(p).convert("RGB").resize((400, 300)) for p in photos[:5]]
    for i in range(60): shots[i % 5].crop((0, 0, 400, 240 + i)).save(tmp_path / "photos" / ("more" if i % 2 else ".") / f"{i:02d}.jpg")
    whole = (tmp_path / "photos" / "00.jpg").read_bytes()
    for name, body in (("cut.jpg", whole[:2000]), ("text.png", b"no image"), ("empty.webp", b"")): (tmp_path / "photos" / name).write_bytes(body)
    artifact, file = tiny, ROOT / "handlers" / "imagenet_classifier.py"
    run = offline.run(file, tmp_path / "photos", tmp_path / "sink", chunk=16, batch=8, artifact=artifact, extra_files=[samples.imagenet_labels()])
    assert (run.rows, run.rejected) == (63, 3)
    why = offline.rejected(tmp_path / "sink").set_index("file")
    assert set(why.index) == {"cut.jpg", "text.png", "empty.webp"} and set(why.status) == {400}
    assert "truncated" in why.reason["cut.jpg"] and "not an image" in why.reason["text.png"] and "empty" in why.reason["empty.webp"]
    answers = offline.read(tmp_path / "sink")
    assert answers.file.is_monotonic_increasing and len(answers) == 60
    here = imported(file).ImagenetClassifier.local(artifact, folder=samples.imagenet_labels().parent, threads=1)
    online = here.predict([tmp_path / "photos" / f for f in answers.file])
    for a, b in zip(answers.answer, online): assert [x["label"] for x in a] == [x["label"] for x in b]

APPRAISER = """
from zztoolkit import Handler

class Appraiser(Handler):
    def inference(self, x): return x["continuous"].sum(1) + 10 * x["categorical"].sum(1) + x["tags"] @ [1, 100, 10_000]
    def postprocess(self, y): return [{"worth": round(float(v), 4)} for v in y]
"""

def sold(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "price": np.where(rng.random(n) < 0.2, np.nan, rng.lognormal(3, 1, n)), "stock": rng.integers(0, 50, n),
        "brand": pd.array(np.where(rng.random(n) < 0.2, None, rng.choice(["acer", "dell", "märke"], n)), dtype="str"),
        "listed": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 300 * 86_400_000, n), unit="ms"),
        "tags": [rng.choice(["new", "red", "boxed"], k).tolist() for k in rng.integers(0, 4, n)]})

@pytest.fixture(scope="module")
def appraiser(tmp_path_factory) -> tuple[Path, Features]:
    home = tmp_path_factory.mktemp("appraiser")
    features = Features([FillMissing("price"), DateParts("listed", parts=("month", "hour")), Normalize(["price", "stock", "listed_hour"]), Categorify(["brand", "listed_month", "tags"]), ListPad("tags", length=3)],
                        outputs=["price", "stock", "listed_hour", "brand", "listed_month", "tags"]).fit(sold(200, 0))
    (home / "appraiser.py").write_text(APPRAISER)
    return pack("appraiser", home / "appraiser.py", features=features, store=home).path, features

@pytest.mark.slow
def test_features_over_a_table(appraiser, tmp_path):
    "Missing numbers and words, dates, lists: rows of a Parquet table get the answers of their records"
    mar, features = appraiser
    df = sold(300, 1)
    df.to_parquet(tmp_path / "sold.parquet")
    run = offline.run(mar, tmp_path / "sold.parquet", tmp_path / "sink", chunk=128, batch=50, processes=1)
    assert (run.rows, run.rejected) == (300, 0)
    here = imported(mar.with_name("appraiser.py")).Appraiser.local(features=features)
    worth = [a["worth"] for a in here.predict(features.to_records(df))]
    assert offline.read(tmp_path / "sink").worth.tolist() == worth
    told, known = offline.drift(tmp_path / "sink"), features.drift(df)
    pd.testing.assert_frame_equal(told.sort_index(), known[told.columns].sort_index())
    df.assign(listed=df.listed.map(pd.Timestamp.isoformat), tags=df.tags.map(json.dumps)).to_csv(tmp_path / "sold.csv", index=False)      # lists as JSON, which pandas' own are, but for the quotes
    offline.run(mar, tmp_path / "sold.csv", tmp_path / "from csv", chunk=128, batch=50, processes=1)
    assert offline.read(tmp_path / "from csv").worth.tolist() == worth

@pytest.mark.slow
def test_the_command_line(scorer, appraiser, tmp_path):
    "What it prints and how it ends: reasons with their numbers; 1 where nothing is answered, or nothing can be begun, and then nothing is left"
    pq.write_table(pa.table({"price": [1.0, 2.0, None, None], "age": [1, 2, 3, 4]}), tmp_path / "items.parquet")
    zz = lambda *args: subprocess.run([Path(sys.executable).with_name("zz"), "offline", *map(str, args)], capture_output=True, text=True)
    fine = zz(scorer, tmp_path / "items.parquet", tmp_path / "sink", "--processes", "1")
    assert fine.returncode == 0 and "rejected   2: 2 price must be a number\n" in fine.stdout, fine.stdout + fine.stderr
    mistyped = zz(appraiser[0], tmp_path / "items.parquet", tmp_path / "mistyped", "--processes", "1")
    assert mistyped.returncode == 1 and "no column listed" in mistyped.stderr, mistyped.stdout + mistyped.stderr
    sold(4, 1).assign(price="dear").to_parquet(tmp_path / "dear.parquet")
    none = zz(appraiser[0], tmp_path / "dear.parquet", tmp_path / "none", "--processes", "1")
    assert none.returncode == 1 and "4 price: should be a valid number" in none.stdout and "every row was rejected" in none.stderr, none.stdout + none.stderr
    for wrong, says in (((scorer, tmp_path / "items.parquet", tmp_path / "no", "--key", "nokey"), "nokey"), ((tmp_path / "no.mar", tmp_path / "items.parquet", tmp_path / "no"), "no archive at"),
                        ((scorer, tmp_path / "items.parquet", "/proc/none"), "cannot create the folder"), ((scorer, tmp_path / "items.parquet", tmp_path), "sink")):
        done = CliRunner().invoke(app, ["offline", *map(str, wrong)])
        assert done.exit_code == 1 and says in done.output and isinstance(done.exception, SystemExit), done.output
    assert not (tmp_path / "no").exists()

@pytest.mark.slow
def test_a_mistyped_header_is_rejected_before_the_first_row(appraiser, tmp_path):
    "Though the price may be missing: the column is named, and the closest one; nothing is answered or rejected"
    sold(20, 1).rename(columns={"price": "Prise"}).to_parquet(tmp_path / "sold.parquet")
    with pytest.raises(ToolkitError, match=r"no column price \(did you mean 'Prise'\?\)"): offline.run(appraiser[0], tmp_path / "sold.parquet", tmp_path / "sink", processes=1)
    assert not list((tmp_path / "sink").glob("part-*")) and not list((tmp_path / "sink").glob("rejected-*"))

@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 64])
def test_bad_rows_of_features(appraiser, tmp_path, batch):
    "Each is rejected with the error that its record would get online"
    mar, features = appraiser
    good = {"price": 9.5, "stock": 3, "brand": "acer", "listed": "2026-02-03T04:05:06", "tags": ["new"]}
    bad = {2: {"stock": None}, 5: {"price": float("inf")}, 6: {"listed": "2026-02-30"}, 9: {"tags": ["new"] * 31}, 11: {"listed": None}, 12: {"tags": ["new", None]}, 13: {"price": float("nan")}}
    records = [good | bad.get(i, {}) for i in range(20)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "spoilt.parquet")
    run = offline.run(mar, tmp_path / "spoilt.parquet", tmp_path / "sink", batch=batch, processes=1)
    why = offline.rejected(tmp_path / "sink")
    assert run.rejected == len(bad) and why.row.tolist() == list(bad) and set(why.status) == {422}
    for reason, changed in zip(why.reason, bad.values()): assert reason.startswith(*changed), reason
    told = imported(mar.with_name("appraiser.py")).Appraiser.local(features=features).predict(records, return_exceptions=True)
    assert why.reason.tolist() == [str(a) for a in told if isinstance(a, Exception)]
    assert offline.read(tmp_path / "sink").worth.tolist() == [a["worth"] for a in told if not isinstance(a, Exception)]

BAD_ROWS = {     # the line, and what is said of it
    b"a,cheap,1": "price must be a number, got 'cheap'", b"b,,1": "price must be a number, got None", b"c,nan,1": "got nan", b"d,-inf,1": "got -inf",
    b"e,1e999,1": "got inf", b"f,1,123456789012345678901234567890": "age must be a number, got 123456789012345678901234567890", b"g,1": "2 cells where the header names 3",
    b"h,1,2024-13-45": "age must be a number, got '2024-13-45'", b"i\xe9,1,1": "column id: not UTF-8: byte 0xe9 at position 1", b"j,1,1,1": "4 cells where the header names 3", b"k,1_000,1": "got '1_000'"}

@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 64])
def test_bad_rows_of_a_csv(scorer, tmp_path, batch):
    lines = [b"good%d,%d.5,3" % (i, i) for i in range(200)]
    for i, bad in enumerate(BAD_ROWS): lines.insert(7 * i + 3, bad)
    (tmp_path / "items.csv").write_bytes(b"id,price,age\n" + b"\n".join(lines))
    run = offline.run(scorer, tmp_path / "items.csv", tmp_path / "sink", key="id", chunk=50, batch=batch, processes=1)
    why = offline.rejected(tmp_path / "sink")
    assert run.rejected == len(BAD_ROWS) and why.row.tolist() == [7 * i + 3 for i in range(len(BAD_ROWS))]
    for reason, says in zip(why.reason, BAD_ROWS.values()): assert says in reason
    assert offline.read(tmp_path / "sink").id.tolist() == [f"good{i}" for i in range(200)]

def test_a_quote_that_is_never_closed(scorer, tmp_path):
    "It would make one cell of the rest of the file: nothing is scored, and the error says where it is"
    (tmp_path / "items.csv").write_bytes(b'id,price,age\na,1,1\nb,"2,1\nc,3,1\n')
    with pytest.raises(ToolkitError, match="not CSV from byte 19 on") as e:
        offline.run(scorer, tmp_path / "items.csv", tmp_path / "sink", key="id", processes=1)
    assert "never closed" in str(e.value)

def test_missing_column(scorer, tmp_path):
    pq.write_table(pa.table({"age": [1, 2]}), tmp_path / "half.parquet")
    assert offline.run(scorer, tmp_path / "half.parquet", tmp_path / "sink").rejected == 2
    assert set(offline.rejected(tmp_path / "sink").reason) == {"price is missing"}

def changed(scorer: Path, folder: Path, old: str, new: str) -> Path:
    "The archive unpacked, its handler changed"
    with zipfile.ZipFile(scorer) as z: z.extractall(folder)
    (folder / "scorer.py").write_text(SCORER.replace(old, new))
    return folder

@pytest.mark.slow
def test_another_run_is_rejected(scorer, items, tmp_path):
    source, sink = tmp_path / "few.parquet", tmp_path / "sink"
    pq.write_table(pq.read_table(items).slice(0, 50), source)
    before = offline.run(scorer, source, sink, chunk=20, processes=1)
    for kw, says in (({"chunk": 10}, "settings chunk: it was 20, it is 10"), ({"key": "id"}, "settings key: it was row, it is id"), ({"answers": "json"}, "settings answers")):
        with pytest.raises(ToolkitError, match=says): offline.run(scorer, source, sink, **({"chunk": 20} | kw))
    with pytest.raises(ToolkitError, match="handler digest"): offline.run(changed(scorer, tmp_path / "other", "0.9", "0.8"), source, sink, chunk=20)
    pq.write_table(pq.read_table(items).slice(1, 50), source)
    with pytest.raises(ToolkitError, match="source digest"): offline.run(scorer, source, sink, chunk=20)
    kept = contents(sink)
    offline.run(scorer, source, sink, chunk=20, restart=True, processes=1)
    assert contents(sink) != kept and before.rows == 50

@pytest.mark.slow
@pytest.mark.parametrize("new, says", [
    ("class Scorer(Handler):\n    def initialize(self, context): open('weights.bin')", "scorer.py.*No such file or directory: 'weights.bin'"),
    ("class Scorer:\n    def initialize(self, context): pass\n    def handle(self, data, context): return [1]", "only a zztoolkit Handler runs offline")])
def test_a_handler_that_does_not_load(items, scorer, tmp_path, new, says):
    "The engineer's own traceback; a handler of TorchServe's own kind is told apart"
    with pytest.raises(ToolkitError, match=f"(?s){says}"): offline.run(changed(scorer, tmp_path / "model", "class Scorer(Handler):", new), items, tmp_path / "sink", processes=1)

def test_a_tampered_archive(scorer, items, tmp_path):
    for p in (scorer, scorer.with_name("scorer.mar.sha256")): (tmp_path / p.name).write_bytes(p.read_bytes())
    with open(tmp_path / "scorer.mar", "ab") as f: f.write(b"more")
    with pytest.raises(ToolkitError, match="is not the archive that was packed"): offline.run(tmp_path / "scorer.mar", items, tmp_path / "sink")


SHOUT = """
from zztoolkit import Handler
class Shout(Handler):
    def preprocess(self, requests): return [r.upper() for r in requests]
    def inference(self, xs): return xs
    def postprocess(self, xs): return [{"shout": x} for x in xs]
"""
REVIEWS = ["good", "", "7", "Grüße", '{"a": 1}']

@pytest.fixture(scope="session")
def shout(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("shout")
    (home / "shout.py").write_text(SHOUT)
    return pack("shout", home / "shout.py", store=home, example="hello").path

@pytest.mark.slow
def test_lines_of_a_text(shout, tmp_path):
    "A line is a request; one that is not UTF-8 is rejected by itself. Stopped in the middle, it goes on"
    (tmp_path / "reviews.txt").write_bytes("\n".join(REVIEWS).encode() + b"\r\ncaf\xe9\n")
    done = offline.run(shout, tmp_path / "reviews.txt", tmp_path / "sink", processes=1, chunk=2)
    assert (done.rows, done.rejected) == (6, 1)
    answers, why = offline.read(tmp_path / "sink"), offline.rejected(tmp_path / "sink")
    assert answers["row"].tolist() == [0, 1, 2, 3, 4] and answers["shout"].tolist() == [r.upper() for r in REVIEWS]
    assert why.row.tolist() == [5] and "not UTF-8: byte 0xe9" in why.reason[0]
    before = contents(tmp_path / "sink")
    (tmp_path / "sink" / "part-00001.parquet").unlink()
    assert offline.run(shout, tmp_path / "reviews.txt", tmp_path / "sink", processes=1, chunk=2).done_before == 4 and contents(tmp_path / "sink") == before

@pytest.mark.slow
@pytest.mark.parametrize("file", ["reviews.parquet", "reviews.csv"])
def test_a_column_of_a_table(shout, tmp_path, file):
    "Its cells are the requests, as text; an empty one is rejected, and another column is another run"
    table = pd.DataFrame({"id": [f"r{i}" for i in range(4)], "review": ["good", None, "Grüße", "so, so"], "stars": [5, 1, 4, 3]})
    table.to_parquet(tmp_path / file) if file.endswith("parquet") else table.to_csv(tmp_path / file, index=False)
    zz = subprocess.run([Path(sys.executable).with_name("zz"), "offline", shout, tmp_path / file, tmp_path / "sink", "--column", "review", "--key", "id", "-p", "1"], capture_output=True, text=True)
    assert zz.returncode == 0, zz.stderr
    answers, why = offline.read(tmp_path / "sink"), offline.rejected(tmp_path / "sink")
    assert dict(zip(answers.id, answers["shout"])) == {"r0": "GOOD", "r2": "GRÜSSE", "r3": "SO, SO"}
    assert why.id.tolist() == ["r1"] and why.reason.tolist() == ["column review: empty"]
    with pytest.raises(ToolkitError, match="source column: it was review, it is id"): offline.run(shout, tmp_path / file, tmp_path / "sink", column="id", key="id", processes=1)
    with pytest.raises(ToolkitError, match="no column text in reviews"): offline.run(shout, tmp_path / file, tmp_path / "other", column="text")

@pytest.mark.parametrize("name, text, rows", [("goods.csv", 'id,"name"\n1,a\n', [{"id": 1, "name": "a"}]), ("words.txt", "first\nsecond\n", ["first", "second"])])
def test_a_byte_order_mark_is_no_text(name, text, rows, tmp_path):
    "As Windows' programs write it before UTF-8; UTF-16 is named"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / name).write_text(text, encoding)
        source = open_source(tmp_path / name, chunk=1)
        assert [x for k in range(source.chunks) for x in read_chunk(source.kind, source.locate(k), k).requests(0, 1)] == rows
    (tmp_path / name).write_text(text, "utf-16")
    with pytest.raises(ToolkitError, match=f"{name} is UTF-16"): open_source(tmp_path / name)

def test_a_sink_of_an_earlier_version(tmp_path):
    "Side files had another name, and so had the column of a row's number beside a key named row"
    sink = tmp_path / "sink"
    sink.mkdir()
    write_manifest(sink, {"chunks": 2})
    for k, name in enumerate(("refused", "rejected")):
        pq.write_table(pa.table({"row": [2 * k], "answer": [1]}), sink / f"part-0000{k}.parquet")
        side = {"row": [2 * k + 1], f"{name}_row": [2 * k + 1], "reason": ["no number"]}
        pq.write_table(pa.table(side), sink / f"{name}-0000{k}.parquet")
    assert offline.rejected(sink)["rejected_row"].tolist() == [1, 3]
    _write_errors(sink, 0, pa.table({"row": []}))       # tried again, and nothing is rejected now
    assert offline.rejected(sink)["rejected_row"].tolist() == [3]

def test_the_old_word_for_an_executor(tmp_path):
    with pytest.warns(DeprecationWarning, match="executor="), pytest.raises(ToolkitError, match="nowhere"):
        offline.run(tmp_path / "x.mar", tmp_path, tmp_path / "sink", engine="nowhere")
