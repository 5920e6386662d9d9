"""Run the table features on cuDF (parts D and E): first call, the project's test, missing dates."""
from __future__ import annotations

import subprocess, sys

from common import finding


def try_cudf():
    with finding("import") as found:
        import cudf
        found["version"], found["sum"] = cudf.__version__, int(cudf.Series([1, 2, None]).sum())


def run_tests():
    "tests/features/test_features.py's tests for a GPU"
    words = ("-q", "-p", "no:cacheprovider", "tests/features/test_features.py", "-m", "gpu")
    command = [sys.executable, "-m", "pytest", *words]
    with finding("the project's tests") as found:
        done = subprocess.run(command, capture_output=True, text=True)
        found["exit_code"], found["output"] = done.returncode, done.stdout[-1500:]


def try_missing_dates():
    with finding("missing dates") as found:
        import cudf, pandas as pd
        from zztoolkit import features as F
        dates = pd.to_datetime(["2026-01-01", None, "2026-03-01"])
        df = pd.DataFrame({"day": dates, "n": [1.0, None, 3.0]})
        ops = [F.DateParts("day", parts=("month",)), F.FillMissing(["day_month", "n"], value=0.0)]
        table = F.Features(ops).fit(df).table(cudf.from_pandas(df))
        found["values"] = {name: x.tolist() for name, x in table.raise_if_invalid().arrays.items()}


def main():
    try_cudf()
    run_tests()
    try_missing_dates()


if __name__ == "__main__": main()
