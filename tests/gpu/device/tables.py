"""Run the table features on cuDF (parts D and E): the project's test, missing dates, and speed."""
from __future__ import annotations

import contextlib, io

import numpy as np, pytest

import test_features as T
from common import finding
from features import goods, REPEATS
from zztoolkit import features as F
from zztoolkit.features.crossover import time_call, time_in_turns

SIZES = (1000, 10_000, 100_000, 1_000_000)


def try_cudf():
    "Import cuDF. numba-cuda 0.30 asks for a name that NumPy 2.5 no longer has"
    with finding("import") as found:
        found["without row_stack"] = not hasattr(np, "row_stack")
        if not hasattr(np, "row_stack"): np.row_stack = np.vstack
        import cudf
        found["version"], found["sum"] = cudf.__version__, int(cudf.Series([1, 2, None]).sum())


def measure(fitted: F.Features, rows: int):
    "Milliseconds of a whole table, validation and all: from pandas, from cuDF, and of the upload"
    import cudf
    with finding("rows", n=rows) as found:
        df = goods(rows)[fitted.inputs]
        found["upload_ms"] = time_call(lambda: cudf.from_pandas(df))
        there = cudf.from_pandas(df)
        found["first_ms"] = time_call(lambda: fitted.table(there))
        calls = [lambda frame=frame: fitted.table(frame) for frame in (df, there)]
        found["pandas_ms"], found["cudf_ms"] = time_in_turns(calls, REPEATS)


def run_tests():
    "tests/features/test_features.py's tests for a GPU"
    words = ["-q", "-p", "no:cacheprovider", "tests/features/test_features.py", "-m", "gpu"]
    with finding("the project's tests") as found, io.StringIO() as output:
        with contextlib.redirect_stdout(output): found["exit_code"] = int(pytest.main(words))
        found["output"] = output.getvalue()[-1500:]


def try_missing_dates():
    with finding("missing dates") as found:
        import cudf, pandas as pd
        dates = pd.to_datetime(["2026-01-01", None, "2026-03-01"])
        df = pd.DataFrame({"day": dates, "n": [1.0, None, 3.0]})
        ops = [F.DateParts("day", parts=("month",)), F.FillMissing(["day_month", "n"], value=0.0)]
        table = F.Features(ops).fit(df).table(cudf.from_pandas(df))
        found["values"] = {name: x.tolist() for name, x in table.raise_if_invalid().arrays.items()}


def main(sizes: tuple[int, ...] = SIZES):
    try_cudf()
    try_missing_dates()
    run_tests()
    fitted = T.every_operation().fit(T.goods())
    for rows in sizes: measure(fitted, rows)


if __name__ == "__main__": main()
