"""Count JPEGs a second: Pillow and the chain on all cores, nvImageCodec, the chain on the GPU.

The sets differ in what decides how fast a JPEG engine is: size, subsampling, progressive or not.
"""
from __future__ import annotations

import io, multiprocessing, os, threading, time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from common import (finding, gpu_ms, items_per_second, photographs, small_jpegs, synchronize,
                    used_mib)
from zztoolkit import vision as V
from zztoolkit.vision.jpeg import read_header

IMAGENET = "500x375"
SIZES = {IMAGENET: (500, 375), "1024x768": (1024, 768), "2048x1536": (2048, 1536)}
SUBSAMPLING = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}
CHAINED = (IMAGENET, "4 MP 4:2:0", "4 MP progressive")      # sets that the whole chain runs on
BATCH = 32


@dataclass(frozen=True)
class Way:
    "A way to decode with nvImageCodec"
    backend: str            # "all" lets nvImageCodec choose among them
    batch: int
    decoders: int           # threads, each with a decoder and a stream of its own
    cpu_threads: int        # of each decoder
    reuse: bool = True      # write into the images of the last batch


WAYS = (Way("all", 1, 1, 2, reuse=False), Way("all", 32, 1, 4, reuse=False), Way("all", 32, 1, 4),
        Way("HW_GPU_ONLY", 32, 1, 1), Way("HW_GPU_ONLY", 128, 1, 1), Way("HW_GPU_ONLY", 32, 4, 1),
        Way("HYBRID_CPU_GPU", 64, 4, 4), Way("all", 64, 4, 4))
FEW = (Way("HW_GPU_ONLY", 32, 1, 1), Way("HYBRID_CPU_GPU", 32, 4, 4), Way("all", 32, 4, 4))


def kind_of(body: bytes) -> str:
    "progressive, grey, CMYK, 4:4:4, 4:2:2, 4:2:0 ..., by the frame header of a JPEG"
    header = read_header(body)
    if header is None: return "no JPEG"
    if not header.is_baseline: return "progressive"
    if len(header.components) == 1: return "grey"
    if len(header.components) == 4: return "CMYK"
    luma, chroma = header.components[:2]
    return SUBSAMPLING.get((luma[0] // chroma[0], luma[1] // chroma[1]), "other")


def body_sets() -> dict[str, list[bytes]]:
    "JPEGs by what they are: pieces of three sizes, and whole photographs by their kind"
    counts = {IMAGENET: 128}
    sets = {name: small_jpegs(counts.get(name, BATCH), size) for name, size in SIZES.items()}
    by_kind: dict[str, list[bytes]] = {}
    for path in photographs():
        body = path.read_bytes()
        by_kind.setdefault(kind_of(body), []).append(body)
    return sets | {f"4 MP {kind}": (by_kind[kind] * BATCH)[:BATCH] for kind in sorted(by_kind)}


# On all cores, without a GPU

@lru_cache
def usual_chain() -> V.Chain:
    return V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())


def decode_with_pillow(body: bytes) -> int:
    import PIL.Image
    PIL.Image.open(io.BytesIO(body)).convert("RGB").load()
    return 0


def run_chain(body: bytes) -> int:
    "Scaled decode, resize, crop, normalise, on one core"
    usual_chain()(body)
    return 0


def measure_cores(name: str, bodies: Sequence[bytes], work: Callable[[bytes], int]) -> float:
    "Bodies a second over a process for each core, forked: nothing has touched CUDA yet"
    many = (list(bodies) * 256)[:256 if name == IMAGENET else 96]
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), fork) as pool:
        return items_per_second(lambda: list(pool.map(work, many, chunksize=4)), len(many))


def measure_cpu(sets: dict[str, list[bytes]]):
    works = {"Pillow on all cores": decode_with_pillow, "CPU chain on all cores": run_chain}
    for name, bodies in sets.items():
        kb = sum(map(len, bodies)) // len(bodies) // 1000
        for what, work in works.items():
            with finding(what, set=name, kb=kb) as found:
                found["per_s"] = round(measure_cores(name, bodies, work))


# nvImageCodec

def new_decoder(way: Way) -> Any:
    from nvidia import nvimgcodec
    options: dict[str, Any] = {"device_id": 0, "max_num_cpu_threads": way.cpu_threads}
    if way.backend != "all":
        kind = getattr(nvimgcodec.BackendKind, way.backend)
        options["backends"] = [nvimgcodec.Backend(kind)]
    return nvimgcodec.Decoder(**options)


class Decoding:
    "One thread's decoder, stream and images"
    def __init__(self, way: Way, bodies: Sequence[bytes]):
        import torch
        self.way, self.bodies, self.images = way, bodies[:way.batch], None
        self.stream, self.decoder = torch.cuda.Stream(), new_decoder(way)

    def run(self):
        "Decode a batch, and wait until it is there"
        from nvidia import nvimgcodec
        streams, on = [nvimgcodec.CodeStream(b) for b in self.bodies], self.stream.cuda_stream
        self.images = self.decoder.decode(streams, cuda_stream=on, **self.reused())
        self.stream.synchronize()

    def reused(self) -> dict[str, Any]:
        "Images of the last batch to write into, if every one was decoded"
        is_whole = bool(self.images) and None not in self.images        # type: ignore[operator]
        return {"images": self.images} if self.way.reuse and is_whole else {}

    def undecoded(self) -> int: return (self.images or []).count(None)


def in_threads(n: int, work: Callable[[int], float]) -> float:
    "The sum of what `work` returns in `n` threads. Raises the first error of one"
    rates, errors = [0.0] * n, list[Exception]()
    def one(k: int):
        try: rates[k] = work(k)
        except Exception as e: errors.append(e)
    threads = [threading.Thread(target=one, args=(k,)) for k in range(n)]
    for t in threads: t.start()
    for t in threads: t.join()
    if errors: raise errors[0]
    return sum(rates)


def measure_nvimgcodec(name: str, bodies: Sequence[bytes], way: Way):
    undecoded: list[int] = []
    def work(k: int) -> float:
        decoding = Decoding(way, bodies)
        rate = items_per_second(decoding.run, len(decoding.bodies))
        undecoded.append(decoding.undecoded())
        return rate
    with finding("nvImageCodec", set=name, **asdict(way)) as found:
        found["per_s"] = round(in_threads(way.decoders, work))
        found["undecoded"] = max(undecoded)


# The project's chain on the GPU

def run_on_gpu(bodies: Sequence[bytes], threads: int, pool: Executor | None):
    "One batch, as a handler with so many threads runs it"
    usual_chain().batch(bodies, pool, "cuda", threads=threads)


def measure_chain(name: str, bodies: Sequence[bytes], threads: int):
    "One worker: a batch of 1 and a full one"
    with ThreadPoolExecutor(threads) as threads_of_worker:
        pool = threads_of_worker if threads > 1 else None
        for batch in (1, BATCH):
            with finding("chain", set=name, batch=batch, threads=threads) as found:
                def work():
                    run_on_gpu(bodies[:batch], threads, pool)
                    synchronize()
                found["per_s"] = round(items_per_second(work, batch))
                started = time.perf_counter()
                for _ in range(3): run_on_gpu(bodies[:batch], threads, pool)
                found["host_ms"] = round(1000 * (time.perf_counter() - started) / 3, 3)


def measure_workers(name: str, bodies: Sequence[bytes], workers: int):
    "Several workers of one process, each with a stream of its own"
    import torch
    def work(k: int) -> float:
        stream = torch.cuda.Stream()
        def run():
            run_on_gpu(bodies[:BATCH], 1, None)
            stream.synchronize()
        with torch.cuda.stream(stream): return items_per_second(run, BATCH)
    with finding("chain in threads", set=name, batch=BATCH, workers=workers) as found:
        found["per_s"] = round(in_threads(workers, work))


def measure_steps(bodies: Sequence[bytes]):
    "Milliseconds of each step of the chain for one batch"
    from zztoolkit.batch import Batch
    with finding(f"steps, batch {BATCH} of {IMAGENET}") as found:
        batch = Batch.of(bodies[:BATCH])
        for step in usual_chain().plan("cuda").steps:
            found[repr(step)[:60]] = gpu_ms(lambda: batch.map_batch(step.run), least=5, seconds=0.3)
            batch = batch.map_batch(step.run)


def main():
    sets = body_sets()
    measure_cpu(sets)
    import torch
    for name, bodies in sets.items():
        for way in WAYS if name == IMAGENET else FEW: measure_nvimgcodec(name, bodies, way)
    for name in (n for n in CHAINED if n in sets):
        for threads in (1, 4): measure_chain(name, sets[name], threads)
        for workers in (2, 4): measure_workers(name, sets[name], workers)
    measure_steps(sets[IMAGENET])
    with finding("memory") as found:
        found["torch_mib"] = torch.cuda.memory_stats()["reserved_bytes.all.peak"] >> 20
        found["used_mib"] = used_mib()


if __name__ == "__main__": main()
