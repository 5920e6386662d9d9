"Models of every kind: files of other tools, detectors, forwards that take a dict, LightGBM."
from __future__ import annotations

import importlib, json, os, textwrap, time, zipfile

import numpy as np, pytest, torch

from conftest import missing

from zztoolkit import Handler
from zztoolkit.archive.packing import pack
from zztoolkit.compile.model_file import model_file_kind, open_model_file
from zztoolkit.compile.store import load_artifact
from zztoolkit.compile.compiler import compile_model
from zztoolkit.errors import InputError, ToolkitError
from zztoolkit.compile.signature import Dim

PLAIN = "from zztoolkit import Handler\nclass Plain(Handler): pass\n"

class Plain(Handler): pass

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
    def forward(self, x): return self.layer(x)

class Detector(torch.nn.Module):
    "Boxes of the cells whose score is above 0.5, the best first: of each image its own number"
    def __init__(self):
        super().__init__()
        self.cells = torch.nn.Conv2d(3, 6, 8, 8)

    def forward(self, images):
        results: list[dict[str, torch.Tensor]] = []
        for image in images:
            maps = self.cells(image[None])[0].flatten(1).T
            scores = maps[:, 4].sigmoid()
            kept = torch.nonzero(scores > 0.5)[:, 0]
            kept = kept[scores[kept].argsort(descending=True)]
            labels = (maps[kept, 5] > 0).long()
            results.append({"boxes": maps[kept, :4], "scores": scores[kept], "labels": labels})
        return results

class Records(torch.nn.Module):
    "Takes a dict, and gives one with another in it"
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
    def forward(self, batch):
        a, b = batch["a"], batch["b"]
        return {"sum": self.layer(a) + b, "more": {"twice": [b * 2]}}

class Chooses(torch.nn.Module):
    def forward(self, x): return x * 2 if bool((x.abs().amax() > 1).item()) else x * 3

quiet = dict(progress=lambda step: None, measure=False)


@pytest.fixture
def net(): return Net().eval()

def saved(net: torch.nn.Module, kind: str, tmp_path):
    path, rows = tmp_path / f"net.{'onnx' if kind == 'onnx' else 'pt'}", torch.randn(4, 3)
    shapes = ({0: torch.export.Dim("rows")},)
    if kind == "script": torch.jit.script(net).save(str(path))
    if kind == "program":
        torch.export.save(torch.export.export(net, (rows,), dynamic_shapes=shapes), path)
    if kind == "onnx":
        program = torch.onnx.export(
            net, (rows,), dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False)
        program.save(str(path))
    return path

@pytest.mark.slow
@pytest.mark.parametrize("kind", ["script", "program", "onnx"])
def test_a_model_file_is_used(net, tmp_path, kind):
    "By its content: all of torch's files are called .pt here"
    path = saved(net, kind, tmp_path)
    (tmp_path / "plain.py").write_text(PLAIN)
    row = np.array([1, 2, 3], np.float32)
    store = tmp_path / "store"
    mar = pack("plain", tmp_path / "plain.py", path, store=store, example=row, batch_size=4)
    assert mar.dry_run_passed and path.name in zipfile.ZipFile(mar.path).namelist()
    want = net(torch.from_numpy(row)[None])[0].detach().numpy()
    local = Plain.local(path)
    for response in local.predict([row, row.tolist()]):
        np.testing.assert_allclose(response, want, atol=1e-5)
    if kind != "script":       # which says nothing of shapes
        with pytest.raises(InputError, match="must be 3"): local.predict([[1, 2]])
        assert pack("plain", tmp_path / "plain.py", path, store=tmp_path / "store").dry_run_passed

@pytest.mark.slow
def test_a_model_file_is_served(net, tmp_path, serve_source):
    file = saved(net, "onnx", tmp_path)
    endpoint = serve_source("filed", PLAIN, file, batchSize=2, maxBatchDelay=200)
    good, wrong = endpoint.predict([[1, 2, 3], [1, 2]], return_exceptions=True)
    np.testing.assert_allclose(good, net(torch.tensor([[1., 2, 3]]))[0].detach(), atol=1e-5)
    assert wrong.status == 422

def test_a_program_with_a_dict_keeps_its_form(tmp_path):
    net = Records().eval()
    example = {"a": torch.ones(2, 3), "b": torch.ones(2, 2)}
    rows = torch.export.Dim("rows")
    shapes = ({"a": {0: rows}, "b": {0: rows}},)
    program = torch.export.export(net, (example,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "r.pt2")
    session = open_model_file(tmp_path / "r.pt2")
    ys, want = session(example["a"].numpy(), example["b"].numpy()), net(example)
    np.testing.assert_allclose(ys["sum"], want["sum"].detach(), atol=1e-5)
    np.testing.assert_array_equal(ys["more"]["twice"][0], want["more"]["twice"][0])

class Evil:
    def __reduce__(self): return os.system, ("touch ran",)

@pytest.mark.parametrize("what", ["state_dict", "module", "old", "evil"])
def test_weights_are_rejected_and_never_unpickled(net, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    weights = net.state_dict()
    content = {"state_dict": weights, "module": net, "old": weights, "evil": Evil()}[what]
    torch.save(content, "net.pt", _use_new_zipfile_serialization=what != "old")
    (tmp_path / "plain.py").write_text(PLAIN)
    message = "(?s)net.pt holds weights only.*compile_model\\(net, example\\)"
    with pytest.raises(ToolkitError, match=message):
        if what == "evil": pack("plain", "plain.py", "net.pt", store="store")
        Plain.local("net.pt")
    assert not list(tmp_path.rglob("ran")) and not list(tmp_path.rglob("*.mar"))

def test_a_program_is_not_unpickled(net, tmp_path, monkeypatch):
    "torch.export.load falls back to pickle for the inputs that a program was exported with"
    monkeypatch.chdir(tmp_path)
    good, bad = saved(net, "program", tmp_path), tmp_path / "bad.pt2"
    torch.save(Evil(), "evil.pt")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for n in old.namelist():
            evil = "sample_inputs" in n
            new.writestr(n, (tmp_path / "evil.pt").read_bytes() if evil else old.read(n))
    assert model_file_kind(bad) == "exported"
    with pytest.raises(ToolkitError, match="cannot be loaded as a program"): open_model_file(bad)
    assert not (tmp_path / "ran").exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ

def test_other_files_are_rejected(tmp_path):
    for content in (b"", b"hello", b"PK\3\4 damaged", b"\x08\x00 not onnx"):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(ToolkitError, match="x.onnx"): Plain.local(tmp_path / "x.onnx")

def test_a_handler_that_reads_its_own_weights_may(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    (tmp_path / "own.py").write_text(textwrap.dedent("""
        import torch
        from zztoolkit import Handler
        class Own(Handler):
            def initialize(self, context):
                super().initialize(context)
                self.net = torch.nn.Linear(3, 2)
                weights = torch.load(context.system_properties["model_dir"] + "/net.pt", weights_only=True)
                self.net.load_state_dict({k.removeprefix("layer."): v for k, v in weights.items()})
            def inference(self, x):
                with torch.no_grad(): return self.net(torch.from_numpy(x))
        """))
    mar = pack("own", tmp_path / "own.py", tmp_path / "net.pt", store=tmp_path, example=[1, 2, 3])
    assert mar.dry_run_passed


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_detector_is_packed_as_torchscript(tmp_path, backend):
    "Each image has its own number of boxes; no program has that, and the report says so"
    torch.manual_seed(0)
    net, images = Detector().eval(), torch.randn(3, 3, 64, 64)
    artifact = compile_model(net, images, backend, batch=(1, 4), path=tmp_path / "a", **quiet)
    statuses = {c["backend"]: c["status"] for c in artifact.report["candidates"]}
    assert statuses["torchscript"] == "chosen"
    reason = "cannot be exported: each row has a result of its own size"
    assert reason in statuses["eager"]
    again = load_artifact(tmp_path / "a")
    ys, want = again(images.numpy()), net(images)
    assert type(ys) is list and len({len(y["boxes"]) for y in ys}) > 1
    for y, w in zip(ys, want):
        for name in w: np.testing.assert_allclose(y[name], w[name].detach(), atol=1e-5)
    assert isinstance(again(images)[0]["boxes"], torch.Tensor)
    requests = [images[0].numpy(), np.zeros((3, 9, 9), np.float32), images[2].numpy()]
    responses = Plain.local(again).predict(requests, return_exceptions=True)
    for i in (0, 2): assert len(responses[i]["boxes"]) == len(want[i]["boxes"])
    assert isinstance(responses[1], InputError)

@pytest.mark.slow
def test_a_detector_is_served(tmp_path, serve_source):
    torch.manual_seed(0)
    net, images = Detector().eval(), torch.randn(3, 3, 64, 64)
    artifact = compile_model(net, images, "eager", batch=4, path=tmp_path / "a", **quiet)
    endpoint = serve_source("detects", PLAIN, artifact, batchSize=4, maxBatchDelay=200)
    for response, w in zip(endpoint.predict(list(images.numpy())), net(images)):
        np.testing.assert_allclose(response["boxes"], w["boxes"].detach(), atol=1e-4)

def test_a_forward_that_branches_on_values_is_packed():
    artifact = compile_model(Chooses(), torch.randn(2, 3), "eager", batch=4, **quiet)
    assert artifact.backend == "torchscript"
    assert "GuardOnDataDependent" in artifact.report["candidates"][0]["status"]
    for x in (torch.full((1, 3), .5), torch.full((1, 3), 5.)):
        torch.testing.assert_close(artifact(x), Chooses()(x))
    with pytest.raises(ToolkitError, match="cannot be exported"):
        compile_model(Chooses(), torch.randn(2, 3), "onnxruntime", **quiet)

class Hidden(torch.nn.Module):
    def forward(self, x): return x * json.loads("2") if bool((x.amax() > 1).item()) else x

def test_what_neither_takes_says_what_to_do():
    message = (
        "(?s)cannot be exported, and TorchScript does not take it.*"
        "torch.export: .*torch.jit.script: .*initialize.*--extra-file")
    with pytest.raises(ToolkitError, match=message):
        compile_model(Hidden(), torch.randn(2, 3), "eager", **quiet)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "onnxruntime", "openvino"])
def test_a_forward_that_takes_a_dict(tmp_path, backend):
    net, example = Records().eval(), {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    artifact = compile_model(net, example, backend, batch=4, path=tmp_path / "a", **quiet)
    ys, want = load_artifact(tmp_path / "a")(example), net(example)
    torch.testing.assert_close(ys["sum"], want["sum"].detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ys["more"]["twice"][0], want["more"]["twice"][0])
    pairs = zip(example["a"], example["b"])
    responses = Plain.local(artifact).predict([{"a": a.numpy(), "b": b.numpy()} for a, b in pairs])
    np.testing.assert_allclose(responses[3]["more"]["twice"][0], want["more"]["twice"][0][3])

class Nested(torch.nn.Module):
    def forward(self, batch, scale): return batch["a"] * scale

def test_a_forward_that_wants_something_else_shows_a_wrapper():
    with pytest.raises(ToolkitError, match=r"(?s)class Wrapped.*def forward\(self, a, b\)"):
        compile_model(Nested(), {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}, **quiet)


@pytest.mark.parametrize("batch, dim", [
    (8, (1, 8, 8)), ((1, 8), (1, 8, 8)), ((8, 8), (8, 8, 8)), ((1, 4, 8), (1, 4, 8))])
def test_batch_in_short(net, batch, dim):
    artifact = compile_model(net, torch.randn(2, 3), "eager", batch=batch, **quiet)
    assert (artifact.batch.min, artifact.batch.opt, artifact.batch.max) == dim

@pytest.mark.parametrize("wrong, message", [
    (dict(batch="8"), r"batch must be one to three whole numbers.*batch=\(1, 8\)"),
    (dict(batch=(1, 2, 3, 4)), "batch must be one to three whole numbers"),
    (dict(batch=(8, 1)), "1 <= min <= opt <= max"),
    (dict(dynamic={1: Dim("length", 1, 2, 3)}), r"dynamic=\{'x': \{1: "),
    (dict(dynamic={"x": Dim("length", 1, 2, 3)}), r"dynamic=\{'ids': \{1: Dim\("),
    (dict(dynamic=[1]), "dynamic must be a dict"),
    (dict(backend="onnx"), "did you mean 'onnxruntime'"),
    (dict(backend="openvno"), "did you mean 'openvino'"),
    (dict(device=torch.device("cuda", 3)), "nothing can be compiled for cuda:3")])
def test_wrong_arguments_say_what_is_right(net, wrong, message):
    with pytest.raises(ToolkitError, match=f"(?s){message}"):
        compile_model(net, torch.randn(2, 3), **quiet | wrong)

def test_a_device_of_torch(net):
    device = torch.device("cpu")
    artifact = compile_model(net, torch.randn(2, 3), "eager", device=device, **quiet)
    assert artifact.device == "cpu"


DOWNLOADS = """
    import os
    from zztoolkit import Handler
    class Downloads(Handler):
        def initialize(self, context):
            super().initialize(context)
            if os.environ.get("HF_HUB_OFFLINE") == "1":
                raise OSError("Cannot find the tokenizer: offline mode is enabled")
            import time; time.sleep(600)
        def inference(self, x): return x
    """

def test_a_missing_file_of_a_hub_is_found_at_once(tmp_path):
    (tmp_path / "downloads.py").write_text(textwrap.dedent(DOWNLOADS))
    start = time.monotonic()
    with pytest.raises(ToolkitError, match="(?s)Cannot find the tokenizer.*--extra-file"):
        pack("downloads", tmp_path / "downloads.py", store=tmp_path, example=[1])
    assert time.monotonic() - start < 60


BOOSTER = """
    from zztoolkit import Handler
    class Trees(Handler):
        def initialize(self, context):
            super().initialize(context)
            from lightgbm import Booster
            self.model = Booster(model_file=context.system_properties["model_dir"] + "/trees.txt")
        def inference(self, x): return self.model.predict(x)
    """

def _import_or_skip(name: str):
    try: return importlib.import_module(name)
    except ImportError: missing(f"{name} is not installed")

@pytest.mark.slow
def test_lightgbm(tmp_path):
    "Its own text file, which runs no code"
    lightgbm = _import_or_skip("lightgbm")
    x = np.random.default_rng(0).normal(size=(200, 3))
    rows = lightgbm.Dataset(x, (x[:, 0] > 0).astype(int))
    booster = lightgbm.train({"objective": "binary", "verbose": -1}, rows, 5)
    booster.save_model(tmp_path / "trees.txt")
    handler = tmp_path / "trees.py"
    handler.write_text(textwrap.dedent(BOOSTER))
    mar = pack("trees", handler, store=tmp_path, extra_files=[tmp_path / "trees.txt"],
        example=[1, 2, 3], batch_size=4)
    assert mar.dry_run_passed
    scope: dict = {}
    exec(textwrap.dedent(BOOSTER), scope)
    answers = scope["Trees"].local(folder=tmp_path).predict([[1, 0, 0], [-1, 0, 0]])
    np.testing.assert_allclose(answers, booster.predict([[1, 0, 0], [-1, 0, 0]]))

FOREST = """
    from zztoolkit import Handler
    class Forest(Handler):
        def initialize(self, context):
            super().initialize(context)
            import joblib
            self.model = joblib.load(context.system_properties["model_dir"] + "/forest.joblib")
        def inference(self, x): return self.model.predict(x)
    """

@pytest.mark.slow
def test_scikit_learn(tmp_path):
    "A forest as joblib, in an archive of one's own; and as ONNX, in one that anyone may give"
    ensemble = _import_or_skip("sklearn.ensemble")
    import joblib
    x = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    forest = ensemble.RandomForestClassifier(5, random_state=0).fit(x, x[:, 0] > 0)
    joblib.dump(forest, tmp_path / "forest.joblib")
    handler = tmp_path / "forest.py"
    handler.write_text(textwrap.dedent(FOREST))
    mar = pack("forest", handler, store=tmp_path, extra_files=[tmp_path / "forest.joblib"],
        example=[1, 2, 3], batch_size=4)
    assert mar.dry_run_passed
    skl2onnx = _import_or_skip("skl2onnx")
    for zipmap in (True, False):
        onnx = skl2onnx.to_onnx(forest, x[:1], options={"zipmap": zipmap}, target_opset=17)
        (tmp_path / "forest.onnx").write_bytes(onnx.SerializeToString())
        if zipmap:
            message = "(?s)something else than tensors.*'zipmap': False"
            with pytest.raises(ToolkitError, match=message): Plain.local(tmp_path / "forest.onnx")
    (tmp_path / "plain.py").write_text(PLAIN)
    onnx_file = tmp_path / "forest.onnx"
    mar = pack("plain", tmp_path / "plain.py", onnx_file, store=tmp_path, batch_size=4)
    assert mar.dry_run_passed
    answers = Plain.local(tmp_path / "forest.onnx").predict(list(x[:20]))
    assert [a["label"] for a in answers] == forest.predict(x[:20]).tolist()
    probabilities = [a["probabilities"] for a in answers]
    np.testing.assert_allclose(probabilities, forest.predict_proba(x[:20]), atol=1e-5)
