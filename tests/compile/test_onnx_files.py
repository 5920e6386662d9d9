"ONNX files that somebody else exported: compiled, compared with ONNX Runtime without optimizations, loaded again."
from __future__ import annotations

import importlib.util, json, os
from pathlib import Path

import numpy as np, onnx, onnxruntime as ort, pytest, torch
from onnx import helper, numpy_helper, TensorProto

from conftest import missing

from zztoolkit import Handler
from zztoolkit.archive.packing import pack
from zztoolkit.compile.compiler import compile_model
from zztoolkit.compile.model_file import open_model_file, weights_beside
from zztoolkit.compile.parity import (
    beyond_rounding, compare, raise_if_different, TOLERANCES, worst_comparison)
from zztoolkit.compile.signature import Dim
from zztoolkit.compile.store import load_artifact
from zztoolkit.errors import InputError, ToolkitError

quiet = dict(progress=lambda step: None, measure=False)
rng = np.random.default_rng(0)

class Plain(Handler): pass

FLOAT, HALF, INT, TEXT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.STRING

def write(path: Path, nodes, inputs, outputs, weights=(), opset=17, version=10, domains=(), **options) -> Path:
    "Write a graph: nodes are (operator, inputs, outputs, attributes), inputs {name: (type, shape)}"
    def values(d): return [helper.make_tensor_value_info(n, t, shape) for n, (t, shape) in d.items()]
    graph = helper.make_graph(
        [helper.make_node(op, list(i), list(o), **a) for op, i, o, a in nodes], "graph",
        values(inputs), values(outputs), [numpy_helper.from_array(w, n) for n, w in dict(weights).items()])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="a test")
    onnx.save(model, path, **options)
    return path

def write_net(path: Path, shape=("N", 3, "H", "W"), dtype=FLOAT, width=8, **options) -> Path:
    "Write a convolution to `y`, and the mean of each image to `mean`"
    kernel = rng.normal(size=(width, 3, 3, 3)).astype(np.float16 if dtype == HALF else np.float32)
    nodes = [
        ("Conv", ["x", "kernel"], ["c"], {"pads": [1] * 4}), ("Relu", ["c"], ["y"], {}),
        ("GlobalAveragePool", ["y"], ["p"], {}), ("Flatten", ["p"], ["mean"], {})]
    outputs = {"y": (dtype, None), "mean": (dtype, None)}
    return write(path, nodes, {"x": (dtype, shape)}, outputs, {"kernel": kernel}, **options)

def write_matmul(path: Path, rows="N", **options) -> Path:
    weights = {"w": rng.normal(size=(4, 5)).astype(np.float32)}
    nodes = [("MatMul", ["x", "w"], ["y"], {})]
    return write(path, nodes, {"x": (FLOAT, (rows, 4))}, {"y": (FLOAT, (rows, 5))}, weights, **options)

def expected(path: Path, **inputs) -> list:
    "What ONNX Runtime gives with every optimization off"
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"]).run(None, inputs)

def images(n, height, width, dtype=np.float32): return rng.normal(size=(n, 3, height, width)).astype(dtype)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_open_sizes_stay_open(tmp_path, backend):
    file = write_net(tmp_path / "Net (1).onnx")
    artifact = compile_model(file, shapes=(1, 3, 32, 64), backend=backend, batch=4, path=tmp_path / "a", **quiet)
    assert str(artifact.inputs[0]) == "x: float32 (batch, 3, H, W)"
    assert [o.shape for o in artifact.outputs] == [("batch", 8, "H", "W"), ("batch", 8)]
    assert [(d.name, d.min, d.opt, d.max) for d in artifact.dims] == [("batch", 1, 4, 4), ("H", 16, 32, 64), ("W", 32, 64, 128)]
    again = load_artifact(tmp_path / "a").load(threads=1)
    for n, height, width in ((1, 32, 64), (4, 16, 128), (3, 33, 65)):
        x = images(n, height, width)
        by_place, by_name, tensors = again(x), again(x=x), again({"x": torch.from_numpy(x)})
        for name, want in zip(("y", "mean"), expected(file, x=x)):
            np.testing.assert_allclose(by_place[name], want, atol=1e-5)
            np.testing.assert_array_equal(by_name[name], by_place[name])
            np.testing.assert_array_equal(tensors[name].numpy(), by_place[name])
    for wrong, message in ((images(5, 32, 64), "batch of 5 is outside 1 to 4"), (images(1, 8, 64), "H of 8 is outside 16 to 64")):
        with pytest.raises(InputError, match=message): again(wrong)

def test_the_report_names_the_file_and_a_second_compilation_finds_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file, steps = write_net(tmp_path / "net.onnx"), []
    shared = dict(shapes={"x": (1, 3, 32, 32)}, batch=(1, 2), progress=steps.append)
    artifact = compile_model(file, **shared)
    report = artifact.show()
    assert repr(report).splitlines()[0] == (
        "net.onnx: ONNX, opset 17, format 10, written by a test; x: float32 (batch, 3, H, W)")
    assert "ONNX Runtime without optimizations" in repr(report) and "written by a test" in report._repr_html_()
    assert {c["backend"] for c in artifact.report["candidates"]} == {"onnxruntime", "openvino"}
    assert "of ONNX Runtime without optimizations" in repr(artifact) and set(artifact.speedup) == {"1", "2"}
    assert compile_model(file, **shared).path == artifact.path and steps[-1] == "– compiled before"
    write_net(file)      # other weights
    assert compile_model(file, **shared).path != artifact.path

def test_ranges_by_the_files_names_or_by_axis(tmp_path):
    file = write_net(tmp_path / "net.onnx")
    by_name = compile_model(file, dynamic={"H": (8, 16), "W": (24, 24)}, batch=2, **quiet)
    assert [(d.name, d.min, d.opt, d.max) for d in by_name.dims[1:]] == [("H", 8, 16, 16), ("W", 24, 24, 24)]
    height = Dim("height", 8, 16, 24)
    by_axis = compile_model(file, images(1, 16, 20), dynamic={"x": {2: height}}, batch=2, **quiet)
    assert str(by_axis.inputs[0]) == "x: float32 (batch, 3, height, W)"
    assert by_axis.dims[1:] == (height, Dim("W", 10, 20, 40))

def write_text(path: Path) -> Path:
    "Write two inputs of ids and a mask of one length, and outputs of three dtypes"
    table = rng.normal(size=(50, 6)).astype(np.float32)
    nodes = [
        ("Gather", ["table", "ids"], ["e"], {}), ("Unsqueeze", ["mask", "axis"], ["m"], {}),
        ("Cast", ["m"], ["f"], {"to": FLOAT}), ("Mul", ["e", "f"], ["tokens"], {}),
        ("ReduceMean", ["tokens"], ["mean"], {"axes": [1], "keepdims": 0}),
        ("ArgMax", ["mean"], ["best"], {"axis": 1, "keepdims": 0}),
        ("Greater", ["mean", "zero"], ["positive"], {})]
    length = (INT, ("rows", "length"))
    outputs = {"mean": (FLOAT, None), "best": (INT, None), "positive": (TensorProto.BOOL, None)}
    weights = {"table": table, "axis": np.array([2]), "zero": np.float32(0)}
    return write(path, nodes, {"ids": length, "mask": length}, outputs, weights)

@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_several_inputs_and_outputs_of_several_dtypes(tmp_path, backend):
    file = write_text(tmp_path / "text.onnx")
    artifact = compile_model(file, backend=backend, batch=4, **quiet)
    assert [str(i) for i in artifact.inputs] == ["ids: int64 (batch, length)", "mask: int64 (batch, length)"]
    assert [o.dtype for o in artifact.outputs] == ["float32", "int64", "bool"]
    ids, mask = rng.integers(0, 50, (3, 20)), np.ones((3, 20), np.int64)
    ys = artifact(ids, mask)
    for name, want in zip(("mean", "best", "positive"), expected(file, ids=ids, mask=mask)):
        assert ys[name].dtype == want.dtype
        np.testing.assert_allclose(ys[name], want, atol=1e-6)
    assert artifact(mask=mask, ids=ids).keys() == ys.keys()
    with pytest.raises(InputError, match="it indexes a table of 50, so from 0 to 49"): artifact(ids + 30, mask)
    with pytest.raises(InputError, match="expected ids, mask; got ids, masks"): artifact(ids=ids, masks=mask)
    responses = Plain.local(artifact).predict([{"ids": i, "mask": m} for i, m in zip(ids, mask)])
    np.testing.assert_allclose(responses[2]["mean"], ys["mean"][2], atol=1e-6)

def test_float16(tmp_path):
    "A CPU computes it in float32, which is nearer to the truth than the file's own rounding"
    file = write_net(tmp_path / "half.onnx", dtype=HALF)
    artifact = compile_model(file, shapes=(1, 3, 16, 16), batch=2, **quiet)
    x = images(2, 16, 16, np.float16)
    y = artifact(x)["y"]
    assert y.dtype == np.float16 and "fp16" in artifact.show().file
    np.testing.assert_allclose(y, expected(file, x=x)[0], atol=0.02)
    with pytest.raises(ToolkitError, match="the file is fp16 already"):
        compile_model(file, x, precision="int8", inputs=x, **quiet)

@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8(tmp_path, backend):
    file, rows = write_net(tmp_path / "net.onnx", opset=11), images(16, 32, 32)      # before int8 of channels
    artifact = compile_model(file, rows[:2], backend, 4, "int8", inputs=rows, **quiet)
    assert artifact.precision == "int8" and 1e-4 < artifact.parity["max_rel_diff"] < 0.25
    quantised = artifact.path / "model.onnx"
    if backend == "openvino": return
    again = compile_model(quantised, rows[:2], batch=4, **quiet)      # the file is int8 itself
    np.testing.assert_allclose(again(rows[:3])["mean"], artifact(rows[:3])["mean"], atol=0.05)

def test_a_fixed_batch_is_the_files_own(tmp_path):
    file = write_matmul(tmp_path / "two.onnx", rows=2)
    artifact = compile_model(file, **quiet)
    assert artifact.dims == (Dim("batch", 2, 2, 2),)
    assert artifact(np.ones((2, 4), np.float32)).shape == (2, 5)
    with pytest.raises(ToolkitError, match=r"(?s)batches of 2 and no others.*batch=8"): compile_model(file, batch=8, **quiet)

def test_a_size_is_fixed_where_the_file_fails_at_others(tmp_path):
    weights = {"shape": np.array([-1, 12])}
    file = write(tmp_path / "r.onnx", [("Reshape", ["x", "shape"], ["y"], {})], {"x": (FLOAT, ("N", "L"))}, {"y": (FLOAT, None)}, weights)
    steps: list = []
    artifact = compile_model(file, shapes=(2, 12), **quiet | {"progress": steps.append})
    assert artifact.dims[1] == Dim("L", 12, 12, 12) and "– L is fixed at 12: the file fails at 6 or 24" in steps


def test_rounding_is_no_difference_but_a_difference_is(tmp_path):
    "A sigmoid near zero holds nothing but rounding; an output that is off in its fifth digit disagrees"
    rows, noise = np.ones((4, 2)), dict(max_rel_diff=3e-3, mean_rel_diff=1e-3)
    near = compare([rows * (1 + 1e-2)], [rows])
    raise_if_different(worst_comparison([("x", beyond_rounding(near, noise))]), "a backend", TOLERANCES["fp32"])
    for rounding in (dict(max_rel_diff=0, mean_rel_diff=0), dict(max_rel_diff=1e-4, mean_rel_diff=1e-4)):
        parity = worst_comparison([("x", beyond_rounding(near, rounding))])
        with pytest.raises(ToolkitError, match="disagrees"): raise_if_different(parity, "a backend", TOLERANCES["fp32"])
    wrong = beyond_rounding(compare([rows * 1.3], [rows]), dict(max_rel_diff=1, mean_rel_diff=1))
    with pytest.raises(ToolkitError, match="disagrees"):
        raise_if_different(worst_comparison([("x", wrong)]), "a backend", TOLERANCES["fp32"])


def write_detector(path: Path, rows=1) -> Path:
    "Write a detector of one image: as many cells as are above 0"
    nodes = [
        ("GlobalAveragePool", ["x"], ["p"], {}), ("Flatten", ["p"], ["means"], {}),
        ("Greater", ["means", "zero"], ["above"], {}), ("NonZero", ["above"], ["t"], {}),
        ("Transpose", ["t"], ["cells"], {}), ("GatherND", ["means", "cells"], ["scores"], {})]
    outputs = {"cells": (INT, ("found", 2)), "scores": (FLOAT, ("found",))}
    return write(path, nodes, {"x": (FLOAT, (rows, 8, 4, 4))}, outputs, {"zero": np.float32(0)})

@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_detector_of_one_image_returns_a_list_with_its_boxes(tmp_path, backend):
    file = write_detector(tmp_path / "d.onnx")
    artifact = compile_model(file, backend=backend, path=tmp_path / "a", **quiet)
    assert "a list with, for each row, cells: int64 (?, 2); scores: float32 (?)" in repr(artifact)
    again, counts = load_artifact(tmp_path / "a"), set()
    for shift in (-9, 0, 9):
        x = rng.normal(size=(1, 8, 4, 4)).astype(np.float32) + np.float32(shift)
        [row], want = again(x), expected(file, x=x)
        np.testing.assert_array_equal(row["cells"], want[0])
        np.testing.assert_allclose(Plain.local(again).predict(x[0])["scores"], want[1], atol=1e-6)
        counts.add(len(row["scores"]))
    assert len(counts) == 3
    several = write_detector(tmp_path / "several.onnx", "N")
    with pytest.raises(ToolkitError, match="(?s)one row for each row.*batch=1"): compile_model(several, **quiet)
    assert compile_model(several, batch=1, **quiet).batch.max == 1


@pytest.fixture
def split(tmp_path) -> Path:
    "A model whose weights are in a file beside it"
    folder = tmp_path / "split"
    folder.mkdir()
    return write_net(folder / "net.onnx", width=64, save_as_external_data=True, location="net.bin", size_threshold=0)

def move_weights(file: Path, location: str):
    "Write another place of the weights into a model"
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer: tensor.external_data[0].value = location
    file.write_bytes(model.SerializeToString())

@pytest.mark.slow
def test_weights_beside_the_file_come_with_it(split, tmp_path):
    artifact = compile_model(split, shapes=(1, 3, 16, 16), batch=2, path=tmp_path / "a", **quiet)
    x = images(2, 16, 16)
    want = expected(split, x=x)[1]
    (tmp_path / "plain.py").write_text("from zztoolkit import Handler\nclass Plain(Handler): pass\n")
    mars = [pack(name, tmp_path / "plain.py", model, store=tmp_path / "store", example=x[0], batch_size=2)
            for name, model in (("compiled", artifact), ("plain", split))]      # loaded in a new process
    assert all(mar.dry_run_passed for mar in mars)
    for f in split.parent.iterdir(): f.unlink()
    np.testing.assert_allclose(load_artifact(tmp_path / "a")(x)["mean"], want, atol=1e-5)

@pytest.mark.parametrize("change, message", [
    (lambda f: f.with_name("net.bin").unlink(), "(?s)weights of net.onnx are missing.*no net.bin beside it"),
    (lambda f: os.truncate(f.with_name("net.bin"), 100), "net.bin is not ONNX, or it was cut off"),
    (lambda f: move_weights(f, "../net.bin"), r"(?s)reads weights outside its folder.*\.\./net.bin"),
    (lambda f: move_weights(f, "/etc/hostname"), "(?s)reads weights outside its folder.*/etc/hostname")])
def test_weights_that_are_not_there(split, change, message):
    change(split)
    with pytest.raises(ToolkitError, match=message): compile_model(split, **quiet)
    with pytest.raises(ToolkitError, match=message): weights_beside(split)
    with pytest.raises(ToolkitError, match="(?s)net.onnx.*→"): open_model_file(split)

def unknown(path: Path, domain="", **options) -> Path:
    node = ("Unheard", ["x"], ["y"], {"domain": domain} if domain else {})
    return write(path, [node], {"x": (FLOAT, ("N", 4))}, {"y": (FLOAT, None)}, domains=[domain] if domain else [], **options)

@pytest.mark.parametrize("make, message", [
    (lambda p: p.write_bytes(b""), "(?s)no model that can be run.*it is empty"),
    (lambda p: p.write_text("a text"), "(?s)no model that can be run.*begins with b'a text'"),
    (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), r"(?s)no model that can be run.*begins with b'\\x89PNG"),
    (lambda p: p.write_bytes(write_net(p).read_bytes()[:300]), "(?s)not ONNX, or it was cut off.*300 bytes"),
    (lambda p: p.write_bytes(b"\x08\x0a"), "(?s)not ONNX, or it was cut off.*no graph"),
    (lambda p: torch.save({"w": torch.ones(1)}, p), "holds weights only"),
    (lambda p: torch.jit.script(torch.nn.Linear(3, 2)).save(str(p)), "(?s)cannot be compiled any further.*TorchScript"),
    (lambda p: write_net(p, version=99), "(?s)newer format than this ONNX Runtime.*IR version: 99"),
    (lambda p: write_net(p, opset=99), "(?s)newer operators than this ONNX Runtime.*Opset 99"),
    (lambda p: unknown(p), "(?s)operator that this ONNX Runtime does not have.*Unheard"),
    (lambda p: unknown(p, "my.operators"), "(?s)operator of another library.*my.operators:Unheard"),
    (lambda p: write(p, [("Identity", ["x"], ["y"], {})], {"x": (TEXT, ("N", 4))}, {"y": (TEXT, None)}), "takes strings"),
    (lambda p: write(p, [("Identity", ["x"], ["y"], {})], {"x": (FLOAT, ())}, {"y": (FLOAT, None)}), "(?s)input x of .* has no rows"),
    (lambda p: write(p, [("Relu", ["x"], ["y"], {})], {"x": (FLOAT, ("N", "T", 4))}, {"y": (FLOAT, None)}),
        r"(?s)size of T cannot be guessed.*shapes=\{'x': \(\?, \?, 4\)\}"),
    (lambda p: write(p, [("RandomNormalLike", ["x"], ["y"], {})], {"x": (FLOAT, ("N", 3))}, {"y": (FLOAT, None)}),
        "returns something else at each call"),
    (lambda p: p.mkdir(), "no model file at")])
def test_what_is_wrong_with_a_file(tmp_path, make, message):
    make(tmp_path / "m.onnx")
    with pytest.raises(ToolkitError, match=message) as e: compile_model(tmp_path / "m.onnx", **quiet)
    assert e.value.do

@pytest.mark.parametrize("arguments, message", [
    (dict(example=np.ones((1, 3, 8, 8))), "(?s)do not fit the file's description.*x of float64.*x: float32"),
    (dict(example={"image": images(1, 8, 8)}), "(?s)other inputs than the file.*image.*x: float32"),
    (dict(example=(images(1, 8, 8), images(1, 8, 8))), "(?s)do not fit.*2 inputs"),
    (dict(shapes=(1, 4, 8, 8)), r"(?s)do not fit.*x of shape \(1, 4, 8, 8\)"),
    (dict(shapes=(1, 3, 8)), "do not fit"),
    (dict(shapes={"image": (1, 3, 8, 8)}), "(?s)shapes has other inputs"),
    (dict(shapes=(1, 3, 8, 8), example=images(1, 8, 8)), "both an example and shapes"),
    (dict(dynamic={"height": (8, 16)}), "(?s)dynamic names what the file does not have: height.*use H, W"),
    (dict(dynamic={"x": {1: Dim("channels", 1, 3, 4)}}), "(?s)dimension 1 of x cannot vary"),
    (dict(dynamic=[1]), "dynamic must be a dict"),
    (dict(backend="eager"), "(?s)eager cannot run here.*modules of PyTorch, no ONNX files"),
    (dict(precision="fp16"), "(?s)onnxruntime fp16: a file keeps its own numbers"),
    (dict(precision="int8"), "give inputs="),
    (dict(device="cuda"), "nothing can be compiled for cuda")])
def test_what_is_wrong_with_a_call(tmp_path, arguments, message):
    with pytest.raises(ToolkitError, match=message): compile_model(write_net(tmp_path / "net.onnx"), **quiet | arguments)

def test_a_network_takes_no_shapes_and_an_artifact_is_loaded(tmp_path):
    with pytest.raises(ToolkitError, match="shapes is for ONNX files"): compile_model(torch.nn.Linear(3, 2), shapes=(1, 3), **quiet)
    artifact = compile_model(write_matmul(tmp_path / "m.onnx"), path=tmp_path / "a", **quiet)
    with pytest.raises(ToolkitError, match="(?s)is compiled already.*load_artifact"): compile_model(artifact.path, **quiet)


RAPIDOCR = {     # PaddleOCR's models, with the sizes to compile for, and others to compare at
    "PP-OCRv6_det_small": ((1, 3, 64, 96), {}, [(2, 3, 96, 64), (1, 3, 128, 160)]),
    "ch_ppocr_mobile_v2.0_cls_mobile": ((1, 3, 48, 192), {}, [(4, 3, 48, 96), (3, 3, 64, 300)]),
    "PP-OCRv6_rec_small": ((1, 3, 48, 96), {"x": {3: Dim("width", 32, 96, 320)}}, [(2, 3, 48, 40), (1, 3, 48, 320)])}

@pytest.mark.slow
@pytest.mark.parametrize("name", RAPIDOCR)
def test_real_models_that_read_text_in_pictures(tmp_path, photo, name):
    spec = importlib.util.find_spec("rapidocr")
    if spec is None: missing("rapidocr is not installed")
    file = Path(spec.submodule_search_locations[0], "models", f"{name}.onnx")
    shape, dynamic, others = RAPIDOCR[name]
    compile_model(file, shapes=shape, dynamic=dynamic, batch=4, path=tmp_path / "a", **quiet)
    session = load_artifact(tmp_path / "a").load(threads=2)
    for shape in others:
        x = crops(photo, *shape)
        want = expected(file, x=x)[0]
        np.testing.assert_allclose(session(x), want, atol=1e-4 * np.abs(want).max())
    assert json.loads((tmp_path / "a" / "artifact.json").read_text())["report"]["file"].startswith(f"{name}.onnx: ONNX, opset 11")

def crops(photo: Path, n: int, channels: int, height: int, width: int) -> np.ndarray:
    "Parts of a photograph with words on it, from -1 to 1"
    from PIL import Image, ImageDraw
    image = Image.open(photo).convert("RGB").resize((width, n * height))
    for i in range(n): ImageDraw.Draw(image).text((4, i * height + 4), f"word {i}", "white", font_size=28)
    rows = np.asarray(image, np.float32).reshape(n, height, width, channels) / 127.5 - 1
    return np.ascontiguousarray(rows.transpose(0, 3, 1, 2))
