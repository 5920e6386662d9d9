"One batch of requests of every kind: a client that sends the model's own tensors changes nothing for its neighbours."
from __future__ import annotations

import numpy as np, pytest, torch

from zztoolkit.compile.compiler import compile_model
from zztoolkit.handler.handler import Handler
from zztoolkit.handler.wire import decode_arrays, ModelInputs

@pytest.fixture(scope="module")
def double(tmp_path_factory):
    "Twice its four inputs"
    net = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.eye_(net.weight)
    net.weight.data *= 2
    return compile_model(net, torch.ones(1, 4), backend="eager", batch=(1, 4, 8), path=tmp_path_factory.mktemp("net") / "double", measure=False)

class Columns(Handler):
    "Returns columns, as a handler may"
    def postprocess(self, outputs): return [float(y.sum()) for y in outputs], [float(y.max()) for y in outputs]

class Plain(Handler):
    pass

class Odd(Handler):
    "A `preprocess` whose inputs have another form"
    def preprocess(self, requests): return {"inputs": super().preprocess(requests).items, "more": np.zeros(len(requests))}
    def inference(self, inputs): return super().inference(inputs["inputs"] if isinstance(inputs, dict) else inputs)

def own(*numbers: float, wants_outputs: bool = False) -> ModelInputs:
    x = ModelInputs(input=np.array(numbers, "f4"))
    x.wants_outputs = wants_outputs
    return x

@pytest.mark.parametrize("handler, want", [(Plain, [2, 4, 6, 8]), (Columns, [20, 8])])
def test_all_kinds_in_one_batch(double, handler, want):
    local = handler.local(double)
    given = [[1, 2, 3, 4], own(1, 2, 3, 4), own(1, 2, 3, 4, wants_outputs=True), [1, 2], own(1, 2), [1, 2, 3, 4]]
    first, second, outputs, short, short_own, last = local.predict(given, return_exceptions=True)
    assert first == second == last == want
    [scores] = decode_arrays(outputs).values()
    assert scores.tolist() == [2, 4, 6, 8] and scores.dtype == np.float32
    assert isinstance(short, Exception) and isinstance(short_own, Exception)

def test_alone_and_in_any_order(double):
    local = Columns.local(double)
    assert local.predict(own(1, 1, 1, 1)) == [8, 2] and local.predict([own(1, 1, 1, 1), [1, 1, 1, 1]]) == [[8, 2]] * 2
    assert list(decode_arrays(local.predict(own(1, 1, 1, 1, wants_outputs=True))).values())[0].tolist() == [2] * 4

def test_a_handler_of_another_form_fails_only_those(double):
    local = Odd.local(double)
    ordinary, rejected = local.predict([[1, 2, 3, 4], own(1, 2, 3, 4)], return_exceptions=True)
    assert ordinary == [2, 4, 6, 8] and "beside other requests" in str(rejected)
