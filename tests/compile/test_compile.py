"Artifacts between processes: compiled once, read by others, served with their limits."
import json, os, subprocess, sys

import numpy as np, pytest, torch

from zztoolkit.compile.compiler import compile_model
from zztoolkit.compile.signature import Dim
from zztoolkit.serving.failures import PredictionError
from zztoolkit.system import find_compiler

COMPILES = """
import torch
from zztoolkit.compile.compiler import compile_model
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 30 * 30, 5))
steps = []
artifact = compile_model(net, torch.randn(1, 3, 32, 32), batch=(1, 2, 4), progress=steps.append)
print(steps[-1], artifact.path.name, flush=True)
"""

@pytest.mark.slow
def test_processes_that_compile_the_same_do_it_once(tmp_path):
    command, env = [sys.executable, "-c", COMPILES], os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(3)]
    printed = sorted(p.communicate(timeout=120)[0].rsplit(maxsplit=1) for p in running)
    assert [step for step, _ in printed] == ["race", "– compiled before", "– compiled before"]
    assert len({name for _, name in printed}) == 1
    assert [p.name for p in (tmp_path / "zztoolkit" / "artifacts").iterdir()] == [printed[0][1]]

LOADS = """
import sys, torch
from zztoolkit.compile.store import load_artifact
session = load_artifact(sys.argv[1]).load(threads=1)
print(session(torch.ones(3, 4)).tolist())
"""

@pytest.mark.slow
@pytest.mark.skipif(not find_compiler(), reason="needs a C++ compiler")
def test_a_package_of_machine_code_is_opened_without_compiling_anything(tmp_path):
    "As in a pod: PyTorch's cache is empty, and stays it"
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 2)
    artifact = compile_model(net, torch.ones(1, 4), backend="aotinductor", batch=(1, 2, 4), path=tmp_path / "net", measure=False)
    empty = tmp_path / "cache"
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(empty)}
    done = subprocess.run([sys.executable, "-c", LOADS, artifact.path], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), net(torch.ones(3, 4)).tolist(), rtol=1e-5)
    assert not list(empty.rglob("*.cpp"))

class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(50, 8)

    def forward(self, ids, mask):
        total = (self.table(ids) * mask[..., None]).sum(1)
        return {"mean": total / mask.sum(1, keepdim=True).clamp(min=1)}

TOKENS = """
from zztoolkit import Handler
class Tokens(Handler):
    def postprocess(self, outputs): return [y.tolist() for y in outputs['mean']]
"""

@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "eager"])
def test_text_is_served_and_wrong_ids_are_the_callers_error(serve_source, tmp_path, backend):
    "Requests have their own lengths; an id past the table is a 422 for its sender alone"
    length = Dim("length", 1, 8, 32)
    model, example = Tokens(), {"ids": torch.randint(0, 50, (2, 6)), "mask": torch.ones(2, 6)}
    artifact = compile_model(
        model, example, backend, (1, 2, 4), dynamic={"ids": {1: length}, "mask": {1: length}},
        path=tmp_path / "tokens", measure=False)
    endpoint = serve_source(f"words_{backend}", TOKENS, artifact, batchSize=2, maxBatchDelay=300)
    def request(ids): return {"ids": ids, "mask": [1.0] * len(ids)}
    requests = request([1, 2, 3]), request([1, 2, 50]), request([4] * 20)
    good, wrong, longer = endpoint.predict(list(requests), return_exceptions=True)
    assert isinstance(wrong, PredictionError) and wrong.status == 422
    assert "indexes a table of 50" in wrong.message
    for response, ids in ((good, [1, 2, 3]), (longer, [4] * 20)):
        want = model(torch.tensor([ids]), torch.ones(1, len(ids)))["mean"][0]
        np.testing.assert_allclose(response, want.detach().numpy(), atol=1e-4)

SHARES = """
import hashlib, re, sys, torch
from pathlib import Path
from zztoolkit.compile.backends.shared import return_free_memory
from zztoolkit.compile.store import load_artifact
def kilobytes(name, text): return sum(map(int, re.findall(rf"^{name}: +(\\d+)", text, re.M)))
def private(): return kilobytes("Anonymous", Path("/proc/self/smaps_rollup").read_text())
artifact = load_artifact(sys.argv[1])
torch.manual_seed(1)
rows = torch.randn(4, 1024)
return_free_memory()
before = private()
session = artifact.load(threads=1)
outputs = session(rows)
print(hashlib.sha256(outputs.numpy().tobytes()).hexdigest(), private() - before, flush=True)
input()
maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M)
mapped = "".join(m for m in maps if "/shared/" in m)
print(kilobytes("Rss", mapped), kilobytes("Pss", mapped), flush=True)
input()
"""

@pytest.mark.slow
def test_processes_share_the_weights_of_an_onnx_file(tmp_path):
    "Each has the bits that it had with weights of its own"
    torch.manual_seed(0)
    net = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(12)])
    artifact = compile_model(net, torch.randn(1, 1024), backend="onnxruntime", batch=(1, 2, 4), path=tmp_path / "net", measure=False)
    command = [sys.executable, "-c", SHARES, artifact.path]

    def measure(n, cache):
        env = os.environ | {"XDG_CACHE_HOME": str(cache)}
        running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) for _ in range(n)]
        loaded = [p.stdout.readline().split() for p in running]
        for p in running: print(file=p.stdin, flush=True)
        mapped = [p.stdout.readline().split() for p in running]
        for p in running: p.communicate("\n", timeout=60)
        return {bits for bits, _ in loaded}, [int(k) for _, k in loaded], [tuple(map(int, m)) for m in mapped]

    (tmp_path / "file").touch()      # no folder can be made below it
    own_bits, (own, _), nothing = measure(2, tmp_path / "file")
    measure(1, tmp_path / "cache")      # writes the copy
    bits, private, mapped = measure(2, tmp_path / "cache")
    weights = 12 * 1024 * 4      # kilobytes
    assert bits == own_bits and len(bits) == 1
    assert nothing == [(0, 0)] * 2 and own > 0.9 * weights, (nothing, own)
    assert all(p < 0.4 * own for p in private), (private, own)
    assert all(rss > 0.9 * weights and pss < 0.6 * rss for rss, pss in mapped), mapped
