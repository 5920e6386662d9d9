"""Compile the network for CUDA as an engineer would, and leave the artifacts for the other parts.

    compile.py                      every candidate, each in a process of its own
    compile.py lite0 fp32 eager     one of them
"""
from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import ENGINES, finding, report, run_fresh
from models import NETWORKS, example_inputs

ROWS = 32                   # that an artifact is compared on
BATCH = (1, 8, ROWS)


@dataclass(frozen=True)
class Candidate:
    network: str
    precision: str
    backend: str
    limit: float = 75       # seconds

    @property
    def folder(self) -> str: return f"{self.network}-{self.precision}-{self.backend}"


# The sure ones first: AOTInductor takes a minute and more
CANDIDATES = (
    Candidate("lite0", "fp32", "eager"),
    Candidate("lite0", "tf32", "eager"),
    Candidate("lite0", "bf16", "eager"),
    Candidate("lite0", "fp32", "aotinductor", 150),
    Candidate("lite0", "bf16", "aotinductor", 150),
)


def compile_one(network: str, precision: str, backend: str, device: str = "cuda"):
    "Compile one candidate, and report the artifact or why there is none"
    from zztoolkit.compile.compiler import compile_model
    candidate = Candidate(network, precision, backend)
    with finding("compile_model", network=network, precision=precision, backend=backend) as found:
        rows = example_inputs(network, ROWS)
        artifact = compile_model(
            NETWORKS[network](), rows[:8], inputs=rows, backend=backend, precision=precision,
            device=device, batch=BATCH, path=ENGINES / candidate.folder, measure=False)
        found["artifact"], found["parity"] = repr(artifact), artifact.parity


def try_candidate(c: Candidate):
    "Compile a candidate in a process of its own, which reports by itself unless it dies"
    ended = run_fresh(Path(__file__), c.network, c.precision, c.backend, limit=c.limit)
    print(ended["printed"], ended["log"])
    if ended["outcome"] == "ok": return
    report("compile_model", network=c.network, precision=c.precision, backend=c.backend,
           error=ended["outcome"], log=ended["log"], seconds=ended["seconds"])


def main():
    "Compile all at the same time: each takes a core or two, and most of a minute to start"
    ENGINES.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(CANDIDATES)) as pool: list(pool.map(try_candidate, CANDIDATES))


if __name__ == "__main__":
    if sys.argv[1:]: compile_one(*sys.argv[1:])
    else: main()
