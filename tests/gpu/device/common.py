"""What the parts share: findings, times by CUDA events, photographs, and fresh processes."""
from __future__ import annotations

import contextlib, io, json, os, statistics, sys, tempfile, time, traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from processes import Child, describe_exit

HOME = Path(os.environ.get("ZZ_GPU_HOME", "/opt/zz-gpu"))     # where the bundle is unpacked
OUT = Path(os.environ.get("ZZ_GPU_OUT", "."))                 # where findings go
ENGINES = HOME / "engines"                                    # artifacts that `compile` wrote
PART = Path(sys.argv[0]).stem
ROOT = Path(__file__).resolve().parents[3]


def report(what: str, **fields: Any):
    "Append a finding to findings.jsonl at once, and print it"
    about = {"call": 1, "at": round(time.time(), 2), "part": PART, "what": what}
    line = json.dumps(about | fields, default=str)
    print(line, flush=True)
    with open(OUT / "findings.jsonl", "a") as file: file.write(line + "\n")


@contextlib.contextmanager
def finding(what: str, **fields: Any) -> Iterator[dict[str, Any]]:
    "Report what the block puts into the dict, or the error that it raises; the part goes on"
    found: dict[str, Any] = {}
    started = time.perf_counter()
    try: yield found
    except Exception as e:
        traceback.print_exc()
        found["error"] = f"{type(e).__name__}: {e}"[:400]
    report(what, **fields, **found, seconds=round(time.perf_counter() - started, 3))


def run_fresh(script: Path, *words: str, limit: float) -> dict[str, Any]:
    """Run a Python script in a fresh process, with faulthandler on.

    Return its `outcome`, its `seconds`, what it `printed`, and the end of its errors (`log`).
    """
    command = [sys.executable, "-X", "faulthandler", str(script), *words]
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as log:
        child = Child(command, limit, stdout=printed, stderr=log)
        outcome = describe_exit(child.wait())
        texts = []
        for file in (printed, log):
            file.seek(0)
            texts.append(file.read().decode(errors="replace").replace(f"{ROOT}/", ""))
    return {"outcome": outcome, "seconds": round(child.seconds, 1),
            "printed": texts[0], "log": texts[1][-4000:]}


def gpu_ms(call: Callable[[], Any], warm: int = 5, least: int = 10, seconds: float = 0.5) -> dict:
    "Time a call by CUDA events. Return milliseconds: median, p99, and the host's to enqueue it"
    import torch
    for _ in range(warm): call()
    synchronize()
    times, host, end = [], [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started = time.perf_counter()
        first.record()
        call()
        last.record()
        host.append(1000 * (time.perf_counter() - started))
        last.synchronize()
        times.append(first.elapsed_time(last))
    return {"ms": round(statistics.median(times), 4), "p99": round(percentile(times, 0.99), 4),
            "host_ms": round(statistics.median(host), 4), "runs": len(times)}


def synchronize():
    "Wait until the GPU has done all"
    import torch
    torch.cuda.synchronize()


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def items_per_second(work: Callable[[], Any], items: int, seconds: float = 0.6) -> float:
    "Call `work`, which does `items` and waits for the GPU, again and again. Return the rate"
    work()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        done += items
    return done / (time.perf_counter() - started)


def used_mib() -> int:
    "MiB of the GPU's memory that anything has taken"
    import torch
    free, total = torch.cuda.mem_get_info()
    return (total - free) >> 20


def photographs() -> list[Path]:
    "The bundle's photographs, 4 megapixels or more each"
    from zztoolkit.system import cache_dir
    folders = [cache_dir() / name for name in ("photographs", "camera")]
    return sorted(p for folder in folders for p in folder.glob("*.jpg"))


def small_jpegs(n: int, size: tuple[int, int] = (500, 375)) -> list[bytes]:
    "Pieces of the photographs, baseline 4:2:0, quality 90; by default of ImageNet's size"
    sources = [at_least(size, p) for p in photographs()]
    return [piece(sources[k % len(sources)], size, k) for k in range(n)]


def at_least(size: tuple[int, int], path: Path) -> Any:
    "A photograph at a quarter of its size, or at `size` if that is larger"
    import PIL.Image
    image = PIL.Image.open(path).convert("RGB")
    width, height = max(size[0], image.width // 4), max(size[1], image.height // 4)
    return image.resize((width, height))


def piece(image: Any, size: tuple[int, int], k: int) -> bytes:
    "The k-th cut of an image, as a JPEG"
    left = 137 * k % max(1, image.width - size[0])
    top = 71 * k % max(1, image.height - size[1])
    out = io.BytesIO()
    image.crop((left, top, left + size[0], top + size[1])).save(out, "JPEG", quality=90)
    return out.getvalue()
