"""Load an artifact in this fresh process, as a server's worker would, and run one batch.

    python -X faulthandler try_load.py FOLDER

If it hangs, its stack goes to stderr after 25 seconds. `try_artifact` runs this file in a process
of its own, and reports what happened instead of raising it.
"""
from __future__ import annotations

import faulthandler, json, sys, time
from pathlib import Path
from typing import Any

LIMIT = 30      # seconds that loading and one batch may take


def try_artifact(folder: Path, limit: float = LIMIT) -> dict[str, Any]:
    """Try an artifact in a fresh process.

    Return `artifact`, `outcome` (ok if it works) and `seconds`; with them `engine`, `load_s` and
    `batch_s`, or the end of the `log`.
    """
    from common import run_fresh
    result = run_fresh(Path(__file__), str(folder), limit=limit)
    printed, log = result.pop("printed"), result.pop("log")
    report = {"artifact": folder.name} | result
    if result["outcome"] != "ok": return report | {"log": log}
    return report | json.loads(printed.splitlines()[-1])


def zeros(artifact: Any) -> list[Any]:
    "A batch of the size that the artifact was compiled for best"
    import torch
    sizes = {d.name: d.opt for d in artifact.dims}
    shapes = [tuple(sizes.get(n, n) for n in spec.shape) for spec in artifact.inputs]
    dtypes = [getattr(torch, spec.dtype) for spec in artifact.inputs]
    return [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes)]


def main():
    faulthandler.enable()
    faulthandler.dump_traceback_later(LIMIT - 5)
    import torch
    from zztoolkit.compile.store import load_artifact
    started = time.perf_counter()
    artifact = load_artifact(sys.argv[1])
    session = artifact.load(1)
    loaded = time.perf_counter()
    outputs = session(*zeros(artifact))
    first = outputs if isinstance(outputs, torch.Tensor) else list(outputs)[0]
    if artifact.device == "cuda": torch.cuda.synchronize()
    ended = time.perf_counter()
    print(json.dumps({"engine": artifact.backend, "device": str(first.device),
                      "load_s": round(loaded - started, 2), "batch_s": round(ended - loaded, 2)}))


if __name__ == "__main__": main()
