"""Merge the folders of several calls of the driver into one record for nbs/benchmarks/gpu.ipynb.

    python tests/gpu/collect.py OUT... nbs/records/gpu/NAME

A record, too, may be among the OUTs. Calls are numbered anew, in their order in time. Counters of
an idle GPU are left out.
"""
from __future__ import annotations

import json, sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ACTIVITY = ("gpu", "jpeg", "sm", "sm_busy")       # a sample in which all are 0 says nothing

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    "The objects of a file with one a line; none if it is not there"
    if not path.exists(): return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_calls(folder: Path) -> list[tuple[Line, list[Line], list[Line]]]:
    "Each call of a folder, with its findings and its counters"
    parts = folder / "parts.json"
    if not parts.exists(): raise SystemExit(f"no parts.json in {folder}: drive.py did not write it")
    findings = read_lines(folder / "findings.jsonl")
    counters = read_lines(folder / "counters.jsonl")
    calls = json.loads(parts.read_text())
    return [(c, lines_of(findings, c["call"]), lines_of(counters, c["call"])) for c in calls]


def lines_of(lines: list[Line], call: int) -> list[Line]:
    return [line for line in lines if line["call"] == call]


def is_active(sample: Line) -> bool: return any(sample.get(name) for name in ACTIVITY)


def to_text(lines: Sequence[Line]) -> str: return "".join(json.dumps(line) + "\n" for line in lines)


def collect(folders: Sequence[Path], record: Path):
    "Write the record. Raises SystemExit if one is there already"
    if record.exists(): raise SystemExit(f"{record} is there already: choose another name")
    calls = sorted((c for f in folders for c in read_calls(f)), key=lambda c: c[0]["at"])
    record.mkdir(parents=True)
    merged: dict[str, list[Line]] = {"calls": [], "findings": [], "counters": []}
    for n, (call, findings, counters) in enumerate(calls, 1):
        merged["calls"].append(call | {"call": n})
        merged["findings"] += [x | {"call": n} for x in findings]
        merged["counters"] += [x | {"call": n} for x in counters if is_active(x)]
    (record / "parts.json").write_text(json.dumps(merged["calls"], indent=1) + "\n")
    (record / "findings.jsonl").write_text(to_text(merged["findings"]))
    (record / "counters.jsonl").write_text(to_text(merged["counters"]))
    counts = ", ".join(f"{len(lines)} {name}" for name, lines in merged.items())
    print(f"{record}: {counts}")


if __name__ == "__main__":
    if len(sys.argv) < 3: raise SystemExit(__doc__)
    *sources, target = map(Path, sys.argv[1:])
    collect(sources, target)
