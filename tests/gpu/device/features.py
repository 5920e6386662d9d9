"""Run the table features on CuPy without cuDF: are they NumPy's, and when are they faster?"""
from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

import test_features as T
from common import finding
from zztoolkit import features as F
from zztoolkit.features.crossover import time_in_turns
from zztoolkit.features.ops.base import transform_all
from zztoolkit.features.table import pack_features
from zztoolkit.features.columns import Columns
from zztoolkit.features.keyed import move_column

SIZES = (1000, 10_000, 100_000, 1_000_000)
REPEATS = 3         # of a measurement, after one to warm up


def to_gpu(columns: Columns) -> Columns:
    import cupy
    return Columns({name: move_column(column, cupy) for name, column in columns.items()})


def run(fitted: F.Features, columns: Columns, validated: Any) -> F.FeatureTable:
    "The features of columns, wherever they are"
    columns.rejected, columns.drift = {}, Counter()
    return pack_features(transform_all(fitted.ops, columns), fitted.groups, validated)


def compare(fitted: F.Features, rows: int = 5000):
    "Are dtypes and values those of NumPy?"
    df = T.goods(rows, seed=4)
    with finding("same as NumPy") as found:
        started = time.perf_counter()
        validated = fitted.schema(df)
        on_gpu, on_cpu = run(fitted, to_gpu(validated.columns), validated), fitted.table(df)
        found["first_call_s"] = round(time.perf_counter() - started, 1)     # CuPy compiles kernels
        for name, x in on_gpu.arrays.items():
            want = on_cpu.arrays[name]
            off = np.abs(x.get().astype("f8") - want)
            found[name] = {"dtype": str(x.dtype) == str(want.dtype), "largest": float(off.max())}
        report_tensors(on_gpu)


def report_tensors(table: F.FeatureTable):
    "Where are the tensors? They must stay on the GPU"
    with finding("tensors") as found:
        found |= {name: str(x.device) for name, x in table.tensors().items()}


def goods(rows: int) -> Any:
    "Return a table of goods. Its lists are of one length: to make others takes far longer"
    lists = {"viewed": [[1, 2]] * rows, "tags": [["new"]] * rows}
    return T.goods(rows, seed=5).drop(columns=list(lists)).assign(**lists)


def measure(fitted: F.Features, rows: int):
    "Milliseconds of NumPy and of CuPy, each on columns that are already where it works"
    with finding("rows", n=rows) as found:
        validated = fitted.schema(goods(rows))
        there = to_gpu(validated.columns)
        sides = validated.columns, there
        calls = [lambda side=side: run(fitted, side, validated) for side in sides]
        found["numpy_ms"], found["cupy_ms"] = time_in_turns(calls, REPEATS)


def main(sizes: tuple[int, ...] = SIZES):
    fitted = T.every_operation().fit(T.goods())
    compare(fitted)
    for rows in sizes: measure(fitted, rows)


if __name__ == "__main__": main()
