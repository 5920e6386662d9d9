"""Time a batch by every way to run a network, and say how far each is from float32 on the CPU.

    engines.py                          every stage, each in a process of its own
    engines.py plain lite0              one stage of one network
    engines.py sessions lite0 eager     the artifacts of one backend
"""
from __future__ import annotations

import copy, sys, time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ENGINES, finding, gpu_ms, report, run_fresh, synchronize
from models import NETWORKS, example_inputs

DEVICE = "cuda"
ROWS = 32
BATCHES = (1, 8, 32, 128)
SUSTAINED = 3       # seconds, long enough for the counters to see it

# Words of one stage, and the seconds that it may take. What may hang or take minutes comes last
STAGES = (
    (("sessions", "lite0", "eager"), 30),
    (("sessions", "lite0", "aotinductor"), 30),
    (("plain", "lite0"), 45),
    (("plain", "resnet50"), 30),
    (("compiled", "lite0"), 90),
)


@dataclass(frozen=True)
class Way:
    "A way to run a network on the GPU"
    how: str
    call: Callable[[Any], Any]
    dtype: str = "float32"
    layout: str = "contiguous_format"       # or channels_last
    graph: bool = False                     # captured: a call is one launch


@dataclass(frozen=True)
class Reference:
    "A network's inputs, and what it gives of the first of them in float32 on the CPU"
    network: str
    rows: Any
    outputs: Any

    def inputs(self, batch: int, way: Way) -> Any:
        "A batch of rows on the GPU, as a way takes them"
        import torch
        dtype, layout = getattr(torch, way.dtype), getattr(torch, way.layout)
        rows = self.rows[torch.arange(batch) % len(self.rows)]
        return rows.to(DEVICE, dtype).contiguous(memory_format=layout)

    def compare(self, outputs: Any) -> dict[str, float]:
        "How far outputs are from the CPU's, relative to its norm and to its largest value"
        first = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        got = first.double().cpu()[:len(self.outputs)]
        want = self.outputs[:len(got)]
        off = got - want
        return {"from_cpu": round_to(off.norm() / want.norm()),
                "largest": round_to(off.abs().max() / want.abs().max())}


def round_to(x: Any, digits: int = 3) -> float: return float(f"{float(x):.{digits}g}")


def load_reference(network: str) -> tuple[Any, Reference]:
    "The network on the CPU, and its reference"
    import torch
    model, rows = NETWORKS[network](), example_inputs(network, ROWS)
    with torch.no_grad(): outputs = model(rows[:8]).double()
    return model, Reference(network, rows, outputs)


def capture(call: Callable[[Any], Any], x: Any) -> Callable[[Any], Any]:
    "The call as a CUDA graph: it runs on `x`, whatever it is given"
    import torch
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3): call(x)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream): outputs = call(x)
    torch.cuda.synchronize()
    def replay(_: Any) -> Any:
        graph.replay()
        return outputs
    return replay


def measure(reference: Reference, way: Way, batches: Sequence[int] = BATCHES):
    import torch
    for batch in batches:
        about = {"network": reference.network, "how": way.how, "batch": batch}
        with finding("engine", **about) as found, torch.no_grad():
            x = reference.inputs(batch, way)
            call = capture(way.call, x) if way.graph else way.call
            found |= reference.compare(call(x)) | gpu_ms(lambda: call(x), seconds=0.3)
            found["rows_per_s"] = round(1000 * batch / found["ms"])


def sustain(reference: Reference, way: Way, batch: int = 128):
    "Run one way for seconds without a pause; counters.jsonl holds what the SMs did meanwhile"
    import torch
    about = {"network": reference.network, "how": way.how, "batch": batch}
    with finding("sustained", **about) as found, torch.no_grad():
        x = reference.inputs(batch, way)
        call = capture(way.call, x) if way.graph else way.call
        call(x)
        synchronize()
        started, runs = time.time(), 0
        while time.time() < started + SUSTAINED:
            for _ in range(10): call(x)
            synchronize()
            runs += 10
        found["from"], found["to"] = round(started, 2), round(time.time(), 2)
        found["rows_per_s"] = round(runs * batch / (time.time() - started))


def plain_ways(model: Any) -> Iterator[Way]:
    "Eager in each precision, then the fastest captured as a graph"
    import torch
    on_gpu = copy.deepcopy(model).to(DEVICE)
    for tf32, how in ((False, "eager fp32"), (True, "eager tf32")):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        yield Way(how, on_gpu)
    half = copy.deepcopy(model).to(DEVICE).bfloat16()
    yield Way("eager bf16", half, "bfloat16")
    last = copy.deepcopy(half).to(memory_format=torch.channels_last)
    yield Way("eager bf16 channels_last", last, "bfloat16", "channels_last")
    yield Way("eager bf16 channels_last, graph", last, "bfloat16", "channels_last", graph=True)


def run_plain(network: str):
    "Eager and a graph; then ResNet-50 at batch 128 for some seconds, to see how busy the SMs get"
    model, reference = load_reference(network)
    for way in plain_ways(model): measure(reference, way)
    if network == "resnet50": sustain(reference, way)


def run_sessions(network: str, backend: str):
    "The artifacts of one backend, as a handler calls them"
    from zztoolkit.compile.store import load_artifact
    _, reference = load_reference(network)
    for folder in sorted(ENGINES.glob(f"{network}-*-{backend}")):
        with finding("load", network=network, artifact=folder.name):
            session = load_artifact(folder).load(1, DEVICE)
            measure(reference, Way(f"session {folder.name}", session), (1, 8, 32))


def run_compiled(network: str):
    "torch.compile takes half a minute for each batch"
    import torch
    model, reference = load_reference(network)
    last = model.to(DEVICE).bfloat16().to(memory_format=torch.channels_last)
    compiled = torch.compile(last, dynamic=False)
    how = "torch.compile bf16"
    plain = Way(how, compiled, "bfloat16", "channels_last")
    graph = Way(f"{how}, graph", compiled, "bfloat16", "channels_last", graph=True)
    for batch in (32, 1):
        for way in (plain, graph): measure(reference, way, (batch,))


RUNS = {"plain": run_plain, "sessions": run_sessions, "compiled": run_compiled}


def main():
    for words, limit in STAGES:
        ended = run_fresh(Path(__file__), *words, limit=limit)
        print(ended["printed"], ended["log"])
        if ended["outcome"] == "ok": continue
        about = {"name": " ".join(words), "seconds": ended["seconds"]}
        report("stage", **about, error=ended["outcome"], log=ended["log"])


if __name__ == "__main__":
    if sys.argv[1:]: RUNS[sys.argv[1]](*sys.argv[2:])
    else: main()
