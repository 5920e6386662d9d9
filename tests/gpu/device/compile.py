"""Compile the network for CUDA as an engineer would, and leave the artifacts for the other parts.

    compile.py                      every candidate, each in a process of its own
    compile.py lite0 fp32 eager     one of them
"""
from __future__ import annotations

import faulthandler, sys
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
    limit: float = 60       # seconds

    @property
    def folder(self) -> str: return f"{self.network}-{self.precision}-{self.backend}"


# What the ladder serves comes first; AOTInductor takes a minute and more
CANDIDATES = (
    Candidate("lite0", "bf16", "eager"),
    Candidate("lite0", "fp32", "aotinductor", 200),
    Candidate("lite0", "fp32", "eager"),
    Candidate("lite0", "tf32", "eager"),
    Candidate("lite0", "bf16", "aotinductor", 200),
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


def main():
    """Compile what an earlier call has not, one after another.

    Five at the same time took longer than their limits.
    """
    ENGINES.mkdir(parents=True, exist_ok=True)
    for c in CANDIDATES:
        if (ENGINES / c.folder / "artifact.json").exists(): continue
        ended = run_fresh(Path(__file__), c.network, c.precision, c.backend, limit=c.limit)
        print(ended["printed"], ended["log"])
        if ended["outcome"] == "ok": continue       # it has reported by itself
        report("compile_model", network=c.network, precision=c.precision, backend=c.backend,
               error=ended["outcome"], log=ended["log"], seconds=ended["seconds"])


if __name__ == "__main__":
    if not sys.argv[1:]: sys.exit(main())
    faulthandler.dump_traceback_later(40, repeat=True)      # where one that is slow spends its time
    compile_one(*sys.argv[1:])
