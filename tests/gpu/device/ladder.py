"""Serve the network and press on it: the stock way and the project's, on the CPU and the GPU.

A rung is reported as soon as it is measured; the last ones are lost if time runs out.
"""
from __future__ import annotations

import re, time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from common import ENGINES, finding, photographs, report, small_jpegs
from try_load import try_artifact
from zztoolkit.archive.packing import pack
from zztoolkit.measure.levels import Setup, measure_level
from zztoolkit.system import usable_cores
from zztoolkit.benchmarks.demo import HANDLERS
from zztoolkit.samples import imagenet_labels, lite_weights
from zztoolkit.benchmarks.ladder import Turn
from zztoolkit.measure.profile import closed_loop
from zztoolkit.serving.endpoint import Endpoint
from zztoolkit.serving.mosec.server import MosecServer
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.server import Server
from zztoolkit.serving.torchserve.config import Settings
from zztoolkit.serving.torchserve.server import LocalServer

SECONDS, WARM_UP = 3, 4     # a worker makes its decoders and its graphs with its first batches
CLIENTS = 256       # enough to fill the batches of 16 workers

# Artifacts in order of preference: the first that loads in a fresh process is served
ARTIFACTS = ("lite0-bf16-eager", "lite0-tf32-eager", "lite0-fp32-eager",
             "lite0-fp32-aotinductor", "lite0-bf16-aotinductor")

OWN = HANDLERS / "imagenet_classifier.py"
STOCK = HANDLERS / "stock_classifier.py"
STOCK_ON_GPU = Path(__file__).parent / "handlers" / "stock_on_gpu.py"
BATCHED = {"batchSize": 32, "maxBatchDelay": 2}


@dataclass(frozen=True)
class Rung:
    "A way to serve the network"
    name: str
    handler: Path
    model: str | Path
    workers: Sequence[int]
    clients: int                                # requests under way at a time
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()                  # beside the labels
    server: str = "torchserve"

    @property
    def batch_size(self) -> int: return self.config.get("batchSize", 1)

    @property
    def delay(self) -> float: return self.config.get("maxBatchDelay", 0)


def choose_artifact() -> Path | None:
    "The first artifact that loads and runs a batch in a fresh process; each try is reported"
    for folder in (ENGINES / name for name in ARTIFACTS):
        if not folder.exists(): continue
        result = try_artifact(folder)
        report("artifact", **result)
        if result["outcome"] == "ok": return folder
    report("artifact", error="no artifact loads in a fresh process: only stock rungs are measured")
    return None


def own_rungs(artifact: Path, cores: int) -> list[Rung]:
    "The project's chain and artifact"
    on_gpu = BATCHED | {"device": "cuda"}
    return [
        Rung("chain and network on the GPU", OWN, artifact, (8,), CLIENTS, on_gpu),
        Rung("chain and network on the GPU, mosec", OWN, artifact, (8, 16), CLIENTS, on_gpu,
             server="mosec"),
        Rung("chain on the CPU, network on the GPU", OWN, artifact, (3 * cores // 4,), CLIENTS,
             BATCHED),
    ]


def stock_rungs(cores: int) -> list[Rung]:
    "Pillow, NumPy and the eager network, one request at a time"
    few, weights = 4 * cores, lite_weights()
    return [
        Rung("stock, network on the GPU", STOCK_ON_GPU, weights, (cores,), few, files=(STOCK,)),
        Rung("stock, CPU", STOCK, weights, (cores,), few),
    ]


def put_on(server: Server, rung: Rung) -> Endpoint:
    "Pack a rung and deploy it"
    name = "rung_" + re.sub(r"\W+", "_", rung.name)
    threads = max(1, usable_cores() // rung.workers[0])
    mar = pack(
        name, rung.handler, rung.model, store=server.folder / "ladder",
        example=photographs()[0], extra_files=[imagenet_labels(), *rung.files],
        minWorkers=rung.workers[0], maxWorkers=max(rung.workers), threads=threads, **rung.config)
    return deploy(server, mar)


def press(endpoint: Endpoint, rung: Rung, workers: int, name: str, bodies: Sequence[bytes]):
    "Measure one rung with so many workers on one set of bodies"
    size = sum(map(len, bodies)) // len(bodies)
    cores = usable_cores()
    setup = Setup(rung.name, workers, rung.batch_size, rung.delay, cores, len(bodies), size)
    about = {"rung": rung.name, "workers": workers, "bodies": name, "clients": rung.clients}
    with finding("turn", **about) as found:
        sent = [(body, "application/octet-stream") for body in bodies]
        level = measure_level(endpoint, sent, closed_loop(rung.clients), SECONDS, WARM_UP, setup)
        found["from"], found["to"] = time.time() - level.total.seconds, time.time()
        found |= asdict(Turn.of(level))
        found["batch"], found["steady"] = round(level.batch, 1), level.steady
        found["errors_by_kind"] = dict(level.errors)


def climb(server: Server, rung: Rung, body_sets: Mapping[str, Sequence[bytes]]):
    "Serve a rung and measure it; whatever it raises is reported"
    with finding("rung", name=rung.name, model=Path(rung.model).name):
        endpoint = put_on(server, rung)
        for workers in rung.workers:
            if workers != rung.workers[0]: endpoint.scale(workers)
            for name, bodies in body_sets.items(): press(endpoint, rung, workers, name, bodies)
        endpoint.remove()


def main():
    cores, artifact = usable_cores(), choose_artifact()
    body_sets = {"500x375": small_jpegs(256), "4 MP": [p.read_bytes() for p in photographs()]}
    own = own_rungs(artifact, cores) if artifact else []
    pairs = zip_longest(own, stock_rungs(cores))       # what is to be compared is measured in turn
    rungs = [rung for pair in pairs for rung in pair if rung]
    settings = Settings(job_queue_size=1000)
    with LocalServer(settings) as torchserve, MosecServer(settings) as mosec:
        servers = {"torchserve": torchserve, "mosec": mosec}
        for rung in rungs: climb(servers[rung.server], rung, body_sets)


if __name__ == "__main__": main()
