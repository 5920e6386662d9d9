"""Run parts one after another, each in a process of its own with a limit of time.

    python3 tests/gpu/device/drive.py --out OUT             all parts whose packages are unpacked
    python3 tests/gpu/device/drive.py --out OUT facts compile=200+parity fresh
    python3 tests/gpu/device/drive.py --dry-run

`a+b` runs two at the same time; `a=200` gives a part another limit, in seconds. Whatever a part
does, the next one runs. OUT gets findings.jsonl (a finding a line), parts.json (how each part
ended), counters.jsonl (what the GPU did) and log.txt (what the parts printed).
"""
from __future__ import annotations

import argparse, contextlib, json, os, signal, subprocess, sys, time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Child

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
HOME = Path(os.environ.get("ZZ_GPU_HOME", "/opt/zz-gpu"))

# Seconds that a part may take
LIMITS = {"facts": 20, "parity": 40, "compile": 160, "fresh": 60, "ladder": 330, "decode": 90,
          "engines": 100, "features": 100, "flat": 45, "aoti": 260, "ort": 90, "tables": 120}

# Serving comes before the long sweeps
PLAN = ("facts", "compile+parity", "fresh", "ladder", "decode", "engines", "features", "flat",
        "aoti", "ort", "tables")

# Parts that need more of the bundle than A, and a package of it
NEEDS = {"ladder": ("B", "ts"), "ort": ("C", "onnxruntime"), "tables": ("D and E", "cudf")}

LEAST = 8           # seconds: with fewer left, a part is not begun
ROOM = 11_000       # characters that the last print may take
WELL = 3            # levels by which decoders may differ without a line of their own
NOT_BEGUN = "no time left"

# What a finding's line says: what it is about, and what came out
IDENTITY = ("name", "network", "how", "precision", "artifact", "ops", "body", "mode", "set",
            "backend", "batch", "decoders", "rung", "workers", "bodies", "n")
RESULTS = ("error", "outcome", "per_s", "rate", "ms", "p99", "gpu", "rows_per_s", "largest",
           "allowed", "cpu", "cuda", "numpy_ms", "cupy_ms", "pandas_ms", "cudf_ms", "load_s",
           "undecoded", "batches", "device", "right")


@dataclass(frozen=True)
class Task:
    "A part, and the seconds that it may take"
    name: str
    limit: float

    @classmethod
    def parse(cls, word: str) -> Task:
        "Read `facts` or `facts=30`. Raises ValueError for anything else"
        name, _, limit = word.partition("=")
        if name not in LIMITS: raise ValueError(f"no such part: {name}")
        return cls(name, float(limit or LIMITS[name]))


def parse_group(word: str) -> list[Task]: return [Task.parse(w) for w in word.split("+")]


def default_groups(site: Path) -> list[str]:
    "The groups of the plan whose packages are unpacked"
    return [group for group in PLAN if not what_lacks(group, site)]


def what_lacks(part: str, site: Path) -> str:
    "The part of the bundle that a part needs and that is not unpacked; '' if there is none"
    letter, package = NEEDS.get(part, ("", ""))
    return "" if (site / package).is_dir() or not package else letter


def environment(out: Path) -> dict[str, str]:
    "What a part runs with: the bundle, the project and its tests, caches that stay"
    tests = ROOT / "tests"
    paths = [HOME / "site", ROOT, HERE, tests, tests / "features", tests / "handler"]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *filter(None, given)]),
        "PYTHONUSERBASE": str(HOME / "site"),       # whose bin/ mosec looks for its program in
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_MODULE_LOADING": "LAZY",
        "XDG_CACHE_HOME": str(HOME / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(HOME / "inductor"),
        "TRITON_CACHE_DIR": str(HOME / "triton"),
        "CUPY_CACHE_DIR": str(HOME / "cupy"),
        "ZZ_GPU_HOME": str(HOME),
        "ZZ_GPU_OUT": str(out),
    }


def start(task: Task, out: Path, left: float, parts: Path = HERE) -> Child:
    "Start a part; what it prints goes to log.txt"
    limit = min(task.limit, left)
    with open(out / "log.txt", "ab") as log:
        log.write(f"\n===== {task.name}, at most {limit:.0f} s, {time.strftime('%T')}\n".encode())
        log.flush()
        return Child([sys.executable, str(parts / f"{task.name}.py")], limit, environment(out),
                     cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def run_group(tasks: Sequence[Task], out: Path, left: float, parts: Path = HERE) -> list[dict]:
    "Run parts at the same time, and wait for all. Return how each ended"
    if left < LEAST: return [{"part": t.name, "ended": NOT_BEGUN} for t in tasks]
    children = [start(t, out, left, parts) for t in tasks]
    ended = []
    try:
        for task, child in sorted(zip(tasks, children), key=lambda pair: pair[1].limit):
            code = child.wait()
            ended.append({"part": task.name, "ended": code, "seconds": round(child.seconds, 1)})
    finally:
        for child in children: child.kill()
    return ended


@contextlib.contextmanager
def counting(out: Path) -> Iterator[None]:
    "Have the GPU's counters written meanwhile"
    command = [sys.executable, str(HERE / "counters.py"), str(out / "counters.jsonl")]
    counters = Child(command, float("inf"), environment(out), stderr=subprocess.DEVNULL)
    try: yield
    finally: counters.kill()


def run_all(groups: Sequence[str], out: Path, seconds: float, parts: Path = HERE) -> list[dict]:
    "Run every group, and keep parts.json up to date"
    out.mkdir(parents=True, exist_ok=True)
    end, ended = time.monotonic() + seconds, list[dict[str, Any]]()
    for tasks in map(parse_group, groups):
        group = run_group(tasks, out, end - time.monotonic(), parts)
        for e in group: print(e["part"], e["ended"], f"after {e.get('seconds', 0)} s", flush=True)
        ended += group
        call = {"call": 1, "at": time.strftime("%F %T"), "parts": ended}
        (out / "parts.json").write_text(json.dumps([call], indent=1))
    return ended


def show(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())[:60]


def summarize(found: dict[str, Any]) -> str:
    "One line for a finding: what it is about, and up to three results"
    about = [show(found[k]) for k in IDENTITY if k in found][:4]
    results = [f"{k}={show(found[k])}" for k in RESULTS if k in found][:3]
    return f"{found['part']}: {' '.join([found['what'], *about])} | {' '.join(results) or 'ok'}"


def is_unremarkable(found: dict[str, Any]) -> bool:
    "Is it one of parity's many findings that all is well?"
    if found["part"] != "parity" or "error" in found: return False
    return "largest" in found and found["largest"] <= found.get("allowed", WELL)


def summarize_all(findings: Sequence[dict[str, Any]]) -> list[str]:
    "A line for each finding; those that all is well are counted"
    plain = sum(map(is_unremarkable, findings))
    counted = [f"parity: {plain} comparisons within what is allowed"] if plain else []
    return counted + [summarize(f) for f in findings if not is_unremarkable(f)]


def fit_lines(lines: Sequence[str], room: int = ROOM) -> list[str]:
    "Cut lines until they fit the room; if they are too many, the first ones go"
    for width in range(160, 39, -10):
        cut = [line[:width] for line in lines]
        if sum(len(line) + 1 for line in cut) <= room: return cut
    last = room // 41 - 1
    return [f"({len(cut) - last} findings before these)", *cut[-last:]]


def dry_run(groups: Sequence[str]) -> int:
    "Say what would run, and check each part. Return 1 if one of them cannot work"
    total, site = 0.0, HOME / "site"
    for number, tasks in enumerate(map(parse_group, groups), 1):
        total += max(t.limit for t in tasks)
        limits = ", ".join(f"{t.name} at most {t.limit:.0f} s" for t in tasks)
        letter = what_lacks(tasks[0].name, site)
        note = f" (unpack {letter} first)" if letter else ""
        print(f"group {number:>2}: {limits}{note}")
    print(f"together at most {total:.0f} s\n", flush=True)
    names = [t.name for tasks in map(parse_group, groups) for t in tasks]
    command = [sys.executable, str(HERE / "check.py"), *names]
    return subprocess.run(command, env=environment(HOME), cwd=ROOT).returncode


def read_arguments() -> argparse.Namespace:
    as_written = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="default: gpu-out")
    parser.add_argument("--seconds", type=float, default=840, help="for all parts; default: 840")
    parser.add_argument("--dry-run", action="store_true", help="list and check the parts")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(LIMITS))
    args = parser.parse_args()
    try: list(map(parse_group, args.parts))
    except ValueError as e: parser.error(str(e))
    return args


def main() -> int:
    args = read_arguments()
    if args.dry_run: return dry_run(args.parts or PLAN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))       # so that nothing is left running
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with counting(out): run_all(args.parts or default_groups(HOME / "site"), out, args.seconds)
    findings = out / "findings.jsonl"
    lines = findings.read_text().splitlines() if findings.exists() else []
    print("\n".join(fit_lines(summarize_all([json.loads(line) for line in lines]))))
    return 0


if __name__ == "__main__": sys.exit(main())
