"Tabular features: one row's error is its own, the same arrays offline and online, in another process and over HTTP, on pandas and on cuDF."
from __future__ import annotations

import concurrent.futures, importlib.util, inspect, json, os, re, subprocess, sys, time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np, pandas as pd, pyarrow as pa, pytest, torch
from hypothesis import given, settings, strategies as st

from support import device
from conftest import ROOT
from zztoolkit import samples, features as F
from zztoolkit.features.crossover import find_crossover
from zztoolkit.features.table import pack_features
from zztoolkit.archive.packing import pack
from zztoolkit.features.columns import Columns
from zztoolkit.features.keyed import move_column
from zztoolkit.compile.compiler import compile_model
from zztoolkit.features.ops.registry import OPERATIONS
from zztoolkit.batch import Batch, row_list
from zztoolkit.errors import InputError, ToolkitError
from zztoolkit.features.cudf import read_arrow_lists, validate_on_gpu
from zztoolkit.handler.handler import Handler
from zztoolkit.handler.wire import encode_response, encode_request
from zztoolkit.features.fields import Field
from zztoolkit.features.ops.base import transform_all
from zztoolkit.features.schema import Schema
from zztoolkit.features.series import read_list
from zztoolkit.features.validation import drop_invalid
from zztoolkit.serving.rollout import deploy


def goods(n: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({
        "price": np.where(rng.random(n) < 0.1, np.nan, rng.lognormal(3, 1, n)), "stock": rng.integers(0, 50, n), "used": rng.random(n) < 0.5,
        "brand": pd.array(np.where(rng.random(n) < 0.1, None, rng.choice([f"märke {i}" for i in range(40)], n)), dtype="str"), "seller": rng.integers(0, 60, n),
        "listed": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 300 * 86_400_000, n), unit="ms"), "viewed": [rng.integers(0, 90, k).tolist() for k in rng.integers(0, 9, n)],
        "tags": [rng.choice(["new", "red", "boxed"], k).tolist() for k in rng.integers(0, 4, n)], "sold": rng.integers(0, 2, n)})
    df.loc[rng.random(n) < 0.1, "listed"] = pd.NaT
    return df

def gap(price, stock): return abs(price) - stock

def titled(names): return [n.title() for n in names]

def every_operation() -> F.Features:
    sellers = pd.DataFrame({"seller": range(50), "stars": np.linspace(1, 5, 50), "town": [f"town {i % 7}" for i in range(50)], "sells": [[f"c{j}" for j in range(i % 4)] for i in range(50)]})
    features = F.Features([
        F.DateParts("listed", parts="year"), F.FillMissing(["listed", "listed_year"], indicator=True),
        F.DateParts("listed", parts=("month", "day", "weekday", "hour", "minute")), F.JoinExternal("seller", table=sellers), F.TargetEncoding(["brand", "seller"], target="sold"),
        F.JoinGroupby("price", key="seller", stats=("count", "sum", "mean", "std", "min", "max")),
        F.FillMissing(["price", "stars", "town", "seller_price_sum", "seller_price_mean", "seller_price_std", "seller_price_min", "seller_price_max"], indicator=True),
        F.Lambda(["price", "stock"], gap, into="gap"), F.Lambda("town", titled), F.HashBucket("town", buckets=16), F.Clip("price", high=500), F.LogOp(["price", "seller_count"]),
        F.Normalize(["price", "stars", "gap"]), F.MinMax("listed_day"), F.Bucketize("stock", buckets=6), F.Categorify(["brand", "seller", "used", "tags", "sells"]), F.HashBucket("viewed", buckets=30),
        F.ListPad(["viewed", "tags"], length=4), F.ListPad("sells", length=3, keep="first", side="left")])
    return replace(features, outputs=[c for c in features.output_columns if c != "listed"])      # a date is no feature

@pytest.fixture(scope="module")
def fitted() -> F.Features: return every_operation().fit(goods())

def equal(a: dict, b: dict):
    assert a.keys() == b.keys()
    for name in a: assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name


def test_ten_thousand_rows_as_records_are_the_table_bit_for_bit(fitted):
    "Rows that the features never saw, as JSON text, in batches of every size; each operation is among them"
    df = goods(10_000, seed=1)
    offline, lines = fitted.table(df).raise_if_invalid().arrays, [json.dumps(r) for r in fitted.to_records(df)]
    assert {type(o) for o in fitted.ops} == set(OPERATIONS.values())
    cuts = [0, 1, 2, 10, 110, 1_000, 9_999, 10_000]
    online = [fitted.table([json.loads(line) for line in lines[a:b]]).raise_if_invalid().arrays for a, b in zip(cuts, cuts[1:])]
    equal({name: np.concatenate([part[name] for part in online]) for name in offline}, offline)
    for i in range(0, 10_000, 500): equal(fitted.table([json.loads(lines[i])]).raise_if_invalid().arrays, {name: x[i:i + 1] for name, x in offline.items()})

def test_another_process_gives_the_same(fitted, tmp_path):
    "State loaded without pickle, under another hash seed: every id and every number is the same"
    fitted.save(tmp_path / "features")
    goods(300, seed=2).to_parquet(tmp_path / "rows.parquet")
    source = "\n".join(["import numpy as np, pandas as pd", "from zztoolkit.features.features import Features", inspect.getsource(gap), inspect.getsource(titled),
                        "np.savez('made.npz', **Features.load('features', [gap, titled]).table(pd.read_parquet('rows.parquet')).raise_if_invalid().arrays)"])
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "made.npz") as made: equal(dict(made), fitted.table(goods(300, seed=2)).raise_if_invalid().arrays)

ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=4), st.binary(max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1), st.datetimes().map(str))

@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["price", "stock", "used", "brand", "seller", "listed", "viewed", "tags", "colour"]), ANYTHING), max_size=5))
def test_any_row_is_rejected_or_right(fitted, changes):
    "Rows spoilt by anything: no error but InputError, each row's verdict and features are those it gets alone, and good neighbours are as ever"
    good = fitted.to_records(goods(2))
    rows = [good[0], *(good[0] | c for c in changes), good[1]]
    together = fitted.table(rows)
    assert set(together.rows) | set(together.errors) == set(range(len(rows))) and {0, len(rows) - 1} <= set(together.rows)
    for i, row in enumerate(rows):
        alone = fitted.table([row])
        assert [str(e) for e in alone.errors.values()] == [str(e) for k, e in together.errors.items() if k == i]
        if not alone.errors: equal(alone.arrays, {name: x[list(together.rows).index(i)][None] for name, x in together.arrays.items()})
    for x in together.arrays.values(): assert np.isfinite(x).all()

@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING), min_size=1, max_size=5))
def test_a_frame_and_its_records_get_the_same_verdict(values):
    "One set of rules: for columns of objects, a data frame's row is rejected with the error of the same record"
    schema = Schema.of(goods(), ["price", "stock", "brand", "viewed"])
    names = list(schema.fields)
    gone = lambda v: None if isinstance(v, float) and v != v else v        # what pandas calls missing
    df = pd.DataFrame({c: pd.Series([row[i] for row in values], dtype=object) for i, c in enumerate(names)})
    by_frame, by_records = schema(df), schema([dict(zip(names, map(gone, row))) for row in values])
    assert {i: str(e) for i, e in by_frame.errors.items()} == {i: str(e) for i, e in by_records.errors.items()}
    for c in names: assert repr(by_frame.columns[c].tolist()) == repr(by_records.columns[c].tolist())

def test_out_of_fold_is_scikit_learns_meaning():
    "The mean of all others' targets: a value that a row alone has tells it nothing of its own target"
    df = pd.DataFrame({"one": [f"v{i}" for i in range(200)], "y": np.random.default_rng(0).random(200)})
    features, table = F.Features([F.TargetEncoding("one", target="y", smoothing=0.0)]).fit_transform(df)
    assert np.allclose(table.arrays["continuous"][:, 0], df.y.mean(), atol=0.05)                        # its fold's mean of all
    assert np.allclose(features.table(df).arrays["continuous"][:, 0], df.y.astype("float32"))           # what a model must not be trained on

def test_a_resident_table_of_a_million_costs_a_request_nothing():
    "A lookup touches the rows asked for, not the table: measured against a table of a thousand, with a wide margin"
    def milliseconds(n: int) -> float:
        table = pd.DataFrame({"item": np.arange(n) * 7, "weight": np.random.default_rng(0).random(n), "maker": [f"m{i}" for i in range(n)]})
        f = F.Features([F.JoinExternal("item", table=table), F.FillMissing("weight"), F.HashBucket("maker", buckets=99)]).fit(pd.DataFrame({"item": [0, 7]}))
        def once():
            start = time.perf_counter()
            f.table([{"item": 7}])
            return time.perf_counter() - start
        return min(once() for _ in range(50)) * 1e3
    assert milliseconds(300_000) < 20 * milliseconds(1_000)

WAYS = {     # a table of some columns, as it may come
    "frame": lambda df: df, "lists": lambda df: df.to_dict("list"), "records": lambda df: df.to_dict("records"),
    "cudf": lambda df: sys.modules["cudf"].from_pandas(df)}

def priced(**choices) -> F.Features:
    ops = [F.FillMissing(["price", "stars"]), F.Normalize("price"), F.Categorify("brand")]
    return F.Features(ops, **choices)

def prices() -> pd.DataFrame:
    return pd.DataFrame({
        "price": [10., np.nan, 30, 20], "stars": [1., 2, 3, 5],
        "brand": pd.array(["acer", "dell", None, "acer"], dtype="str")})

def test_a_column_that_nothing_uses_is_an_error():
    "Named, with the words that settle it: until now it was dropped in silence"
    df = prices().assign(weight=[1.5, 2, 3, 4], colour=["red", "blue", "red", "red"])
    with pytest.raises(ToolkitError, match="no operation uses weight, colour") as e: priced().fit(df)
    assert 'remainder="drop"' in e.value.do and 'remainder="passthrough"' in e.value.do
    dropped = priced(remainder="drop").fit(df)
    equal(dropped.table(df).raise_if_invalid().arrays, priced().fit(prices()).table(prices()).raise_if_invalid().arrays)
    with pytest.raises(ToolkitError, match="error or drop or passthrough"): priced(remainder="ignore")

def test_what_reads_learns_joins_or_comes_out_is_used():
    "Targets, keys, numbers of groups and outputs need no word; a column that is written over does"
    sellers = pd.DataFrame({"seller": [1, 2], "stars": [4., 5.]})
    df = pd.DataFrame({"seller": [1, 2] * 5, "shop": [1] * 10, "price": range(10), "sold": [0, 1] * 5, "weight": [2.] * 10})
    ops = [F.JoinExternal("seller", table=sellers), F.FillMissing("stars"), F.JoinGroupby("price", key="shop", stats="count"), F.TargetEncoding("seller", target="sold")]
    features = F.Features(ops, outputs=["stars", "shop_count", "seller_sold", "weight"])
    assert features.fit(df).groups["continuous"] == ("stars", "shop_count", "seller_sold", "weight")
    with pytest.raises(ToolkitError, match="no operation uses stars"): features.fit(df.assign(stars=1.))

def test_numbers_pass_and_text_does_not(tmp_path):
    "As they are, after the rest; a request must have them; the choice is restored"
    df = prices().assign(weight=[1.5, 2, 3, 4], stock=[7, 8, 9, 10], used=[True, False, False, True])
    fitted = priced(remainder="passthrough").fit(df)
    assert fitted.groups["continuous"] == ("price", "stars", "weight", "stock", "used")
    passed = df[["weight", "stock", "used"]].to_numpy("float32")
    for rows in (df, fitted.to_records(df)): assert np.array_equal(fitted.table(rows).raise_if_invalid().arrays["continuous"][:, 2:], passed)
    with pytest.raises(InputError, match="no column stock"): fitted.table(df.drop(columns="stock"))
    fitted.save(tmp_path)
    assert F.Features.load(tmp_path) == fitted
    text = df.assign(colour="red", day=pd.Timestamp("2026-01-05"), sizes=[[1]] * 4)
    with pytest.raises(ToolkitError, match="colour, day, sizes cannot pass") as e: fitted.fit(text)
    assert e.value.found == "colour holds text, day holds dates, sizes holds lists"
    with pytest.raises(ToolkitError, match="weight is missing, and nothing fills it"): fitted.fit(df.assign(weight=np.nan))

@pytest.mark.parametrize("way", WAYS)
def test_a_mistyped_header_is_rejected(way, stand_ins):
    "The missing column and the name that it may have meant; of records, each fails, even where a value may be missing"
    fitted = priced().fit(prices())
    mistyped = WAYS[way](prices().rename(columns={"price": "Prise"}))
    said = re.escape("price") + ".*" + re.escape("(did you mean 'Prise'?)")
    with pytest.raises(InputError, match=said): fitted.table(mistyped).raise_if_invalid()
    if way == "records": assert list(fitted.table(mistyped).errors) == [0, 1, 2, 3]

def test_a_mistyped_csv_is_rejected_when_features_are_fitted():
    "Before what nothing uses is told of: it is the same column"
    with pytest.raises(ToolkitError, match=r"no column price \(did you mean 'prise'\?\)"): priced().fit(prices().rename(columns={"price": "prise"}))

@pytest.mark.parametrize("way", WAYS)
def test_an_optional_column_may_be_left_out(way, stand_ins, tmp_path):
    "It is missing in every row, of whatever way the rows come, and counted; the choice is restored"
    priced(optional=["stars", "brand"]).fit(prices()).save(tmp_path)
    fitted = F.Features.load(tmp_path)
    assert fitted.optional == ("stars", "brand")
    missing, drift = prices().assign(stars=np.nan, brand=pd.array([None] * 4, dtype="str")), Counter()
    made = fitted.table(WAYS[way](prices()[["price"]].fillna(7)), drift=drift).raise_if_invalid()
    want = fitted.table(missing.fillna({"price": 7})).raise_if_invalid()
    equal({name: x.get() if way == "cudf" else x for name, x in made.arrays.items()}, want.arrays)
    assert drift["stars", "missing"] == drift["brand", "missing"] == 4
    with pytest.raises(InputError, match="price"): fitted.table(WAYS[way](prices()[["stars", "brand"]])).raise_if_invalid()

class Priced(Handler):
    def inference(self, inputs): return inputs["continuous"][:, 1]

def test_a_request_without_a_column_fails_alone():
    "422 with the column and the closest name; its neighbours are answered, and an optional column is missing"
    service = Priced.local(features=priced(optional="stars").fit(prices()))
    good = {"price": 10., "stars": 4., "brand": "acer"}
    bad = {"prise": 10., "stars": 4., "brand": "acer"}
    first, wrong, lacking, gap = service.predict([good, bad, {"price": 1., "brand": None}, good | {"stars": None}], return_exceptions=True)
    assert (wrong.status, str(wrong)) == (422, "price is missing (did you mean 'prise'?)")
    assert first == 4 and lacking == gap == 2.5
    lists = [{c: [v] * 2 for c, v in r.items()} for r in (good, bad, {"price": 1., "brand": None})]
    many = service.handler.featurize_many(lists)
    assert (many.requests, {i: str(e) for i, e in many.errors.items()}) == ((0, 2), {1: str(wrong)})
    assert many.items[1]["continuous"][:, 1].tolist() == [2.5, 2.5]

def test_what_is_optional_must_be_read_and_filled():
    "Found when features are fitted, though the training table has no gap"
    with pytest.raises(ToolkitError, match=r"star is optional, and no operation reads it \(did you mean 'stars'\?\)"): priced(optional="star").fit(prices())
    bare = F.Features([F.Normalize("stars")], optional="stars", remainder="drop")
    with pytest.raises(ToolkitError, match="stars is missing, and nothing fills it"): bare.fit(prices())

def test_features_of_before_do_what_they_did(tmp_path):
    "Saved without a choice: unused columns dropped; a record may leave out what may be missing, a table no column"
    priced(optional="stars").fit(prices()).save(tmp_path)
    said = json.loads((tmp_path / "features.json").read_text())
    del said["remainder"], said["schema"]["optional"]
    said["schema"]["fields"]["stars"]["nullable"] = False
    (tmp_path / "features.json").write_text(json.dumps(said))
    old = F.Features.load(tmp_path)
    assert old.remainder == "drop" and old.fit(prices().assign(weight=1.)).groups == old.groups
    assert list(old.table([{"stars": 1.}, {"price": 3.}]).errors) == [1]
    with pytest.raises(InputError, match="no column price"): old.table(prices()[["stars", "brand"]])
    old.save(tmp_path)
    assert F.Features.load(tmp_path) == old

class Ranker(torch.nn.Module):
    def __init__(self, ids: int):
        super().__init__()
        self.bias = torch.nn.Embedding(ids, 1)
    def forward(self, continuous, categorical): return continuous[:, 0] + 0.1 * self.bias(categorical[:, 1])[:, 0]

@pytest.fixture(scope="module")
def ranked(server, tmp_path_factory):
    "handlers/recommendation.py as it is in the repository, on MovieLens, with a small model"
    torch.manual_seed(0)
    ratings, people, films = samples.movielens()
    features = F.Features([F.JoinExternal("user", table=people, take="age"), F.JoinExternal("film", table=films, take="year"), F.TargetEncoding("film", target="rating"),
                           F.FillMissing(["age", "year"]), F.Normalize(["film_rating", "age", "year"]), F.Categorify(["user", "film"])], outputs=["film_rating", "age", "year", "user", "film"], remainder="drop").fit(ratings)
    home = tmp_path_factory.mktemp("ranked")
    artifact = compile_model(Ranker(features.cardinalities["film"]).eval(), features.to_tensors(ratings[:8]), batch=(1, 64, 1024), backend="onnxruntime", path=home / "artifact", measure=False)
    mar = pack("recommendation", ROOT / "handlers" / "recommendation.py", artifact, features=features, example={"user": 1, "candidates": [1, 2]}, store=home, batchSize=8, maxBatchDelay=20)
    spec = importlib.util.spec_from_file_location("recommendation", ROOT / "handlers" / "recommendation.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    endpoint = deploy(server, mar)
    yield endpoint, module.Recommendation.local(artifact, features=features)
    endpoint.remove()

@pytest.mark.slow
def test_recommendation_over_http_is_what_it_is_here(ranked):
    "Requests of 1 to 1,682 films from 16 clients at once, batched together: each gets the answer that it would get alone"
    endpoint, local = ranked
    rng = np.random.default_rng(0)
    questions = [{"user": int(rng.integers(1, 1100)), "candidates": rng.integers(1, 1683, n).tolist(), "top": 5} for n in rng.integers(1, 400, 120)] + [{"user": 5}, {"user": 6, "top": 2000}]
    with concurrent.futures.ThreadPoolExecutor(16) as pool: answers = list(pool.map(endpoint.predict, questions))
    for q, a in zip(questions, answers): assert a == local.predict(q), q
    assert len(answers[-1]) == 1682 and answers[-1][0]["score"] >= answers[-1][-1]["score"]

WRONG = {
    "wrong type": ({"user": "Ann", "candidates": [1]}, 422, "user: should be a valid integer, got 'Ann'"), "missing column": ({"candidates": [1]}, 422, "a request is an object with user"),
    "NaN": (b'{"user": NaN, "candidates": [1]}', 422, "user: should be"), "infinity": (b'{"user": 1, "candidates": [Infinity]}', 422, "film: should be"),
    "huge integer": ({"user": 1, "candidates": [10**40]}, 422, "film: should be less than"), "empty list": ({"user": 1, "candidates": []}, 422, "1 to 5,000"),
    "10,000-long list": ({"user": 1, "candidates": list(range(10_000))}, 422, "1 to 5,000"), "not UTF-8": (b'{"user": "\xff"}', 400, "not JSON"), "not JSON": (b"user=1", 400, "not JSON"), "a list": ([1], 422, "a request is an object"), "empty": (b"", 400, "the body is empty")}

@pytest.mark.parametrize("what", WRONG)
def test_wrong_requests(ranked, what):
    "Each fails alone with its status and its reason, beside a good one in the same batch"
    endpoint, local = ranked
    body, status, says = WRONG[what]
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    good = {"user": 3, "candidates": [7, 8]}
    with concurrent.futures.ThreadPoolExecutor(2) as pool: wrong, right = pool.submit(endpoint.post, body, "application/json"), pool.submit(endpoint.predict, good)
    assert wrong.result().status_code == status and says in wrong.result().json()["error"]["message"], wrong.result().text
    assert right.result() == local.predict(good)

def test_an_unknown_category_is_answered_and_counted(ranked, server):
    "A person and a film that the past does not have: an answer, and drift in the metrics"
    endpoint, local = ranked
    new = {"user": 10**9, "candidates": [10**9, 1]}
    assert endpoint.predict(new) == local.predict(new)
    text = server.metrics()
    drift = {line.split("}")[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("zz_feature_drift{") and 'model_name="recommendation"' in line}
    found = {kind: n for line, n in drift.items() for kind in ("unknown", "not_in_the_table", "out_of_range") if f'"{kind}"' in line and 'column="user"' in line}
    assert found["unknown"] >= 2 and found["not_in_the_table"] >= 2 and found["out_of_range"] >= 2, text
    assert 'zz_feature_rows{' in text

def test_no_operation_mixes_host_and_device(fitted, monkeypatch):
    "Every operation on arrays that reject what CuPy's reject: the same result, and all of it on the device"
    cupy = device.cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    df = goods(500, seed=4)
    validated = fitted.schema(df)
    there = Columns({c: move_column(x, cupy) for c, x in validated.columns.items()})
    there.drift = drift = Counter()
    fitted.schema.count_drift(there)
    made = pack_features(transform_all(fitted.ops, there), fitted.groups, validated)
    want = Counter()
    host = fitted.table(df, drift=want)
    for name, x in made.arrays.items(): assert isinstance(x, cupy.ndarray) and x.dtype == host.arrays[name].dtype and np.array_equal(x.get(), host.arrays[name]), name
    assert drift == want and drift
    assert made.frame().equals(host.frame())
    less = drop_invalid(there, len(df), {3: InputError("a wrong row")})
    less.columns.rejected = {0: InputError("another")}
    kept = pack_features(transform_all(fitted.ops, less.columns), fitted.groups, less)
    assert list(kept.errors) == [0, 3]
    for name, x in kept.arrays.items(): assert np.array_equal(x.get(), np.delete(host.arrays[name], [0, 3], axis=0)), name

@pytest.fixture
def stand_ins(monkeypatch) -> SimpleNamespace:
    "Modules in the places of CuPy, cuDF and RMM"
    modules = {"cupy": device.cupy(), "cudf": device.cudf(), "rmm": device.rmm()}
    for name, module in modules.items(): monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(**modules)

def test_a_cudf_frame_gives_what_a_pandas_frame_gives(fitted, stand_ins):
    "Every operation, dates and numbers missing; invalid rows are rejected with the same errors"
    def on_gpu(df: pd.DataFrame): return fitted.table(stand_ins.cudf.from_pandas(df[fitted.inputs]))
    df = goods(500, seed=4)
    assert df.listed.isna().any() and df.price.isna().any()
    host, made = fitted.table(df).raise_if_invalid(), on_gpu(df).raise_if_invalid()
    for name, x in made.arrays.items(): assert isinstance(x, stand_ins.cupy.ndarray), name
    equal({name: x.get() for name, x in made.arrays.items()}, host.arrays)
    days = np.array(["2026-01-05", "NaT", "20000-01-01", "NaT"], "datetime64[us]")
    bad = df[:4].assign(price=[1., np.inf, 2., np.nan], listed=days)
    rejected = {i: str(e) for i, e in fitted.table(bad).errors.items()}
    assert list(rejected) == [1, 2] and rejected == {i: str(e) for i, e in on_gpu(bad).errors.items()}

NAN = float("nan")
ITEMS = {
    "int": [[1, 2], [], [3]], "float": [[1.5], [2, 3.0]], "bool": [[True], [], [False, True]],
    "text": [["new", "märke"], ["new"], []], "datetime": [[pd.Timestamp("2026-01-05 12:00")], []]}

@pytest.mark.parametrize("kind", ITEMS)
def test_lists_of_arrow_are_what_values_are(kind):
    "Read at once, as values are one by one: rows of a slice, empty and missing lists"
    field = Field(kind, many=True, nullable=True, longest=3)
    rows = [*ITEMS[kind], None]
    array = pa.array([[*ITEMS[kind][0]] * 9, *rows, []])[1:-1]
    read, (want, _) = read_arrow_lists(field, array), read_list("x", field, rows)
    assert read.lengths.tolist() == want.lengths.tolist() and read.tolist() == want.tolist()
    assert read.lengths.dtype == want.lengths.dtype
    if kind != "text": assert read.flat.dtype == want.flat.dtype

ODD = {
    "int": [[[1, None]], [[1.5]], [["a"]], [[1] * 4], [None]], "float": [[[NAN, 1.0]], [[True]]],
    "bool": [[[1]]], "text": [[["a", None]], [[1]]], "datetime": [[["2026-01-05"]], [[pd.Timestamp("2026-01-05", tz="UTC")]]]}

@pytest.mark.parametrize("kind, rows", [(kind, rows) for kind in ODD for rows in ODD[kind]])
def test_lists_that_may_be_invalid_are_looked_at_one_by_one(kind, rows):
    "So that the error names the value; text instead of lists, too"
    field = Field(kind, many=True, longest=3)
    assert read_arrow_lists(field, pa.array(rows)) is None and read_arrow_lists(field, pa.array(["ab"])) is None

WITH_GAPS = {
    "datetime": pd.to_datetime(["2026-01-05", None, "2026-03-09 08:15"], format="ISO8601"),
    "bool": pd.array([True, None, False], dtype="boolean"), "float": pd.array([1, None, 3], dtype="Int64")}

@pytest.mark.parametrize("kind", WITH_GAPS)
def test_what_is_missing_on_cudf_becomes_nan(kind, stand_ins):
    "cuDF fills with NaN among floats alone; its other columns are made floats first"
    df = pd.DataFrame({"x": WITH_GAPS[kind]})
    as_stored = device.Series(df.x).astype("int64")
    with pytest.raises(TypeError, match="Cannot safely cast"): as_stored.to_cupy(na_value=np.nan)
    schema = Schema({"x": Field(kind, nullable=True)})
    made = validate_on_gpu(schema, stand_ins.cudf.from_pandas(df)).columns["x"]
    assert isinstance(made, stand_ins.cupy.ndarray) and np.isnan(made.get()[1])
    assert np.array_equal(made.get(), schema(df).columns["x"], equal_nan=True)

def test_memory_comes_from_a_pool_unless_the_caller_chose(fitted, stand_ins):
    "One pool; a resource of the caller's own stays, and so does cudaMalloc where there are no pools"
    mr, table = stand_ins.rmm.mr, stand_ins.cudf.from_pandas(goods(5)[fitted.inputs])
    for _ in range(3): fitted.table(table)
    assert type(mr.current) is mr.CudaAsyncMemoryResource
    assert stand_ins.rmm.made["CudaAsyncMemoryResource"] == 1
    mr.current = own = mr.PoolMemoryResource()
    fitted.table(table)
    assert mr.current is own
    def no_pools(): raise RuntimeError("cudaMallocAsync not supported with this CUDA driver")
    mr.current, mr.CudaAsyncMemoryResource = mr.CudaMemoryResource(), no_pools
    assert len(fitted.table(table)) == 5 and type(mr.current) is mr.CudaMemoryResource

class Machine:
    """A clock, features, and a GPU, as slow as an H100's (nbs/records/gpu/h100-2026-11-26).

    The GPU works while the host goes on: only `synchronize` waits for it.
    """
    LAUNCH, COMPILE, KERNELS, ROW = 0.5e-3, 21.0, 12.7e-3, 0.95e-6      # seconds

    def __init__(self):
        self.now, self.gpu_done, self.compiled = 0.0, 0.0, False
        self.log: list[str] = []

    def perf_counter(self) -> float:
        self.log.append("clock")
        return self.now

    def synchronize(self):
        self.log.append("wait")
        self.now = max(self.now, self.gpu_done)

    def to_tensors(self, rows: pd.DataFrame, device: str, backend: str):
        self.log.append(backend)
        if backend == "pandas": self.now += self.ROW * len(rows)
        else: self._launch()

    def _launch(self):
        self.now += self.LAUNCH if self.compiled else self.COMPILE
        self.compiled, self.gpu_done = True, self.now + self.KERNELS

@pytest.fixture
def machine(stand_ins, monkeypatch) -> Machine:
    made = Machine()
    stand_ins.cupy.cuda = SimpleNamespace(Device=lambda: made)
    monkeypatch.setattr("zztoolkit.features.crossover.time", made)
    return made

def test_the_gpu_pays_where_its_work_is_done_sooner(machine):
    "13 ms on the GPU, 0.95 ms for a thousand rows on the CPU: they meet near 14,000 rows"
    assert find_crossover(machine, goods(50), (1_000, 3_000, 10_000, 30_000, 100_000), 3) == 30_000
    assert find_crossover(machine, goods(50), (1_000, 10_000), 1) == 0

def test_a_measurement_ends_when_the_gpu_has_done_its_work(machine):
    "Kernels are compiled before any clock starts; sides in turns, one turn to warm up"
    find_crossover(machine, goods(50), (100_000,), 3)
    first, *log = machine.log
    assert first == "cudf"
    turn = [call for backend in ("cudf", "pandas") for call in ("clock", backend, "wait", "clock")]
    assert log == turn * (1 + 3)

PARTS = {"tensor": lambda x: x, "tuple": lambda x: (x, x), "dict": lambda x: {"scores": x}}

@pytest.mark.parametrize("made_of", PARTS)
def test_answers_leave_the_gpu_together(made_of, monkeypatch):
    "One transfer for each tensor of a batch, not one for each row"
    monkeypatch.setattr(device.Tensor, "transfers", 0)
    x = torch.arange(96.).reshape(32, 3)
    there, here = (PARTS[made_of](t) for t in (x.as_subclass(device.Tensor), x))
    found = [encode_response(row) for row in row_list(there, on_host=True)]
    assert found == [encode_response(row) for row in row_list(here)]
    assert device.Tensor.transfers == (2 if made_of == "tuple" else 1)

def test_rows_stay_on_the_gpu_between_the_steps_of_a_chain(monkeypatch):
    "The next step works on them there"
    monkeypatch.setattr(device.Tensor, "transfers", 0)
    batch = Batch(torch.arange(96.).reshape(32, 3).as_subclass(device.Tensor), tuple(range(32)))
    for rows in (batch.results(), batch.map(lambda row: row + 1).items):
        assert {type(row) for row in rows} == {device.Tensor}
    assert not device.Tensor.transfers

def test_rows_of_cupys_array_are_numpys_on_the_host(stand_ins):
    x = stand_ins.cupy.asarray(np.arange(6.).reshape(3, 2))
    assert {type(row) for row in row_list(x, on_host=True)} == {np.ndarray}

cudf_missing = not importlib.util.find_spec("cudf")

@pytest.mark.gpu
@pytest.mark.skipif(cudf_missing, reason="cuDF is not installed")
def test_every_operation_is_the_same_on_cudf(fitted):
    "Ids equal, numbers within float32's rounding; tensors stay on the GPU; bad rows rejected with the same errors"
    import cudf
    from rmm import mr
    df = goods(50_000, seed=3)
    assert df.listed.isna().any()
    host, made = fitted.table(df).raise_if_invalid(), fitted.table(cudf.from_pandas(df[fitted.inputs])).raise_if_invalid()
    assert isinstance(mr.get_current_device_resource(), mr.CudaAsyncMemoryResource)
    for name, x in made.tensors().items():
        assert x.is_cuda
        assert torch.allclose(x.cpu(), torch.as_tensor(host.arrays[name]), rtol=1e-5, atol=1e-6), name
    bad = df[:6].assign(stock=[1, 2, 3, 4, 5, 6], price=[1., np.inf, np.nan, 2., 3., 4.])
    assert {i: str(e) for i, e in fitted.table(cudf.from_pandas(bad[fitted.inputs])).errors.items()} == {i: str(e) for i, e in fitted.table(bad).errors.items()}

def test_a_row_of_a_frame_is_a_request():
    "A series by its names, a column as a list; an array of objects is rejected with what to do"
    table = pd.DataFrame({"price": [1.5, 2], "seller": ["a", None]})
    assert [encode_request(x)[0] for x in (table.iloc[1], table["price"], table.iloc[0])] == [b'{"price": 2.0, "seller": null}', b"[1.5, 2.0]", b'{"price": 1.5, "seller": "a"}']
    assert encode_request(pd.Series([1, 2], index=[7, 8]))[0] == b"[1, 2]"
    with pytest.raises(ToolkitError, match="array of Python objects") as e: encode_request(table.to_numpy())
    assert "dtype object" in e.value.found and "tolist" in e.value.do
