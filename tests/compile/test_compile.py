"Artifacts between processes: compiled once, read by others, served with their limits."
import os, subprocess, sys

import numpy as np, pytest, torch

from zztoolkit.compile.compiler import compile_model
from zztoolkit.serving.endpoint import PredictionError
from zztoolkit.compile.signature import Dim

COMPILES = """
import torch
from zztoolkit.compile.compiler import compile_model
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 30 * 30, 5))
steps = []
artifact = compile_model(net, torch.randn(1, 3, 32, 32), batch=(1, 2, 4), progress=steps.append)
print(steps[-1], artifact.path.name, flush=True)
"""

def test_processes_that_compile_the_same_do_it_once(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", COMPILES], stdout=subprocess.PIPE, text=True, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)}) for _ in range(3)]
    said = sorted(p.communicate(timeout=120)[0].rsplit(maxsplit=1) for p in running)
    assert [step for step, _ in said] == ["race", "– compiled before", "– compiled before"] and len({name for _, name in said}) == 1
    assert [p.name for p in (tmp_path / "zztoolkit" / "artifacts").iterdir()] == [said[0][1]]

class Tokens(torch.nn.Module):
    def __init__(self): super().__init__(); self.table = torch.nn.Embedding(50, 8)
    def forward(self, ids, mask): return {"mean": (self.table(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)}

@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "eager"])
def test_text_is_served_and_wrong_ids_are_the_callers_error(serve_source, tmp_path, engine):
    "Requests of their own lengths; an id past the table is a 422 for its sender, and nothing to the other"
    length = Dim("length", 1, 8, 32)
    model, example = Tokens(), {"ids": torch.randint(0, 50, (2, 6)), "mask": torch.ones(2, 6)}
    artifact = compile_model(model, example, engine, (1, 2, 4), dynamic={"ids": {1: length}, "mask": {1: length}}, path=tmp_path / "tokens", measure=False)
    source = "from zztoolkit import Handler\nclass Tokens(Handler):\n    def postprocess(self, outputs): return [y.tolist() for y in outputs['mean']]\n"
    endpoint = serve_source(f"words_{engine}", source, artifact, batchSize=2, maxBatchDelay=300)
    ask = lambda ids: {"ids": ids, "mask": [1.0] * len(ids)}
    good, wrong, longer = endpoint.predict([ask([1, 2, 3]), ask([1, 2, 50]), ask([4] * 20)], return_exceptions=True)
    assert isinstance(wrong, PredictionError) and wrong.status == 422 and "indexes a table of 50" in wrong.message
    for answer, ids in ((good, [1, 2, 3]), (longer, [4] * 20)):
        want = model(torch.tensor([ids]), torch.ones(1, len(ids)))["mean"][0]
        np.testing.assert_allclose(answer, want.detach().numpy(), atol=1e-4)
