"""Code for a GPU: on a real one (`make gpu`), and on a simulated one everywhere.

On a real one every image operation runs on both backends, over real photographs.
"""
import ast, contextlib, io, json, re, sys, time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np, PIL.Image, pytest, torch

from support import fake_cuda
from conftest import missing
from zztoolkit import samples, vision as V
from zztoolkit.benchmarks.demo import handler_module
from zztoolkit.handler import loading, runner
from zztoolkit.handler.handler import Handler
from zztoolkit.handler.local import LocalHandler
from zztoolkit.handler.torchserve import receive
from zztoolkit.handler.wire import encode_request
from zztoolkit.vision.bridge import unavailable_reason
from zztoolkit.vision.cuda_decode import open_stream, decode_params
from zztoolkit.vision.ops import OPS
from zztoolkit.compile.attempts import check_opens
from zztoolkit.compile.compiler import compile_model
from zztoolkit.errors import DecodeError, ToolkitError
from zztoolkit.system import installed
from zztoolkit.compile.backends.base import LoadOptions
from zztoolkit.compile.backends.graphs import GraphRunner, graph_sizes
from zztoolkit.compile.backends.onnx import cuda_provider
from zztoolkit.compile.backends.registry import BACKENDS
from zztoolkit.compile.backends.tensorrt import tensorrt_arguments
from zztoolkit.vision.pixels import CONVERSIONS, THRESHOLDS
from zztoolkit.compile.signature import Dim, TensorSpec

reason = unavailable_reason()
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(bool(reason), reason=reason or "-")]

GREY, SMALL = V.CvtColor("RGB2GRAY"), V.Resize((240, 320))
SHEAR = (1, .1, 5), (0, 1, -3)
PERSPECTIVE = (*SHEAR, (0, .0005, 1))
# Operations, and the largest difference of a pixel in 1/255. Above 1: fixed-point weights of 1/32
# of a pixel in OpenCV's warps and of 1/2048 in its cubic resize; 8-bit weights in Pillow's cubic
# one (3 in one pixel of 100,000 on an H100); HSV's hue where saturation is low; histograms where a
# rounding moves a whole level, and CLAHE's tiles (11 on an H100); thresholds, where a rounding
# turns black into white.
ON_BOTH = {
    (SMALL,): 1,
    (V.Resize(200, "bicubic"),): 3,
    (V.Resize(200, antialias=False),): 1,
    (V.Resize(200, "bicubic", antialias=False),): 2,
    (V.Resize(200, "area"),): 1,
    (V.Resize(200, "nearest"),): 0,
    (V.Resize(200, "nearest-exact"),): 0,
    (V.CenterCrop(300),): 0,
    (V.Crop(10, 20, 300, 200),): 0,
    (V.Letterbox(256),): 1,
    (V.Pad(9, 7),): 0,
    (V.Pad((1, 2, 3, 4), padding_mode="edge"),): 0,
    (V.Pad(9, padding_mode="reflect"),): 0,
    (V.Pad(9, padding_mode="symmetric"),): 0,
    (V.Flip("horizontal"),): 0,
    (V.Flip("vertical"),): 0,
    (V.Flip("both"),): 0,
    (SMALL, V.Rotate(17)): 8,
    (SMALL, V.Warp(SHEAR)): 8,
    (SMALL, V.Warp(PERSPECTIVE, size=(100, 90))): 8,
    (V.GaussianBlur(5, 1.2),): 1,
    (V.GaussianBlur((3, 7), 2.0),): 1,
    (V.MedianBlur(3),): 0,
    (V.MedianBlur(5),): 0,
    (V.Morphology("erode", 3),): 0,
    (V.Morphology("dilate", (3, 5), 2),): 0,
    (V.Morphology("open", 5),): 0,
    (V.Morphology("close", 3),): 0,
    (GREY,): 1,
    (V.CvtColor("RGB2BGR"),): 0,
    (V.CvtColor("RGB2YUV"),): 1,
    (V.CvtColor("RGB2HSV"),): 2,
    (V.Equalize(),): 1,
    (GREY, V.CLAHE(2.0)): 12,
    (V.Threshold(100),): 0,
    (V.Threshold(100, type="trunc"),): 0,
    (GREY, V.Threshold(otsu=True)): 255}


def pixels(chain: V.Chain, device: str, image: np.ndarray) -> np.ndarray:
    made = chain.plan(device, exact=True)(image)
    return (made if isinstance(made, np.ndarray) else made.cpu().numpy()).astype(int)

MANY_OFF = {V.CLAHE: 0.05}      # share of pixels that may be off by more than 1; of all others 0.01

# Chains that one call of CV-CUDA does for a batch, and their largest difference in 1/255
FUSED = {
    (V.Resize(256), V.CenterCrop(224), V.Normalize()): 1.01,
    (V.Resize((200, 300)), V.CenterCrop((250, 224)), V.Normalize()): 1.01,
    (V.Resize((256, 300), antialias=False), V.CenterCrop(224), V.ToDtype()): 1.01}

@pytest.fixture(scope="module")
def record(request):
    "What was measured, written as JSON to --record with the device, the date and the versions"
    measured: dict = {"operations": {}, "fused": {}}
    yield measured
    if not (path := request.config.getoption("--record")) or not any(measured.values()): return
    import torch
    packages = "torch", "cvcuda-cu13", "nvidia-nvimgcodec-cu13"
    versions = {name: installed(name) for name in packages}
    device, date = torch.cuda.get_device_name(), time.strftime("%Y-%m-%d")
    about = {"device": device, "date": date, "versions": versions}
    with open(path, "w") as f: json.dump(about | measured, f, indent=1)

def named(ops: tuple) -> str: return " ".join(map(repr, ops))

class TestOnGpu:
    pytestmark = needs_gpu

    @pytest.mark.parametrize("ops", ON_BOTH, ids=named)
    def test_same_pixels_on_both_backends(self, ops, photos, record):
        seen = {"allowed": ON_BOTH[ops], "largest": 0, "mean": 0.0}
        record["operations"][named(ops)] = seen
        for photo in photos:
            # decoders differ by a level, so each operation is compared on the same pixels
            image = V.Chain(V.Decode(), V.Resize(480))(photo)
            a, b = (pixels(V.Chain(*ops), device, image) for device in ("cpu", "cuda"))
            assert a.shape == b.shape
            off = np.abs(a - b)
            seen["largest"] = max(seen["largest"], int(off.max()))
            seen["mean"] = max(seen["mean"], float(off.mean()))
            assert off.max() <= ON_BOTH[ops], photo.name
            assert (off > 1).mean() < MANY_OFF.get(type(ops[-1]), 0.01), photo.name

    @pytest.mark.parametrize("ops", FUSED, ids=named)
    def test_one_call_for_a_batch_of_any_sizes(self, ops, photos, record):
        images = [V.Chain(V.Decode(), V.Resize(480))(photo) for photo in photos]
        chain, std = V.Chain(*ops), np.array(getattr(ops[-1], "std", (1,)))[:, None, None]
        on_gpu = chain.batch(images, device="cuda").items.cpu().numpy()
        off = 255 * std * np.abs(on_gpu - np.stack([chain.plan(exact=True)(i) for i in images]))
        record["fused"][named(ops)] = {
            "allowed": FUSED[ops], "largest": float(off.max()), "mean": float(off.mean())}
        assert off.max() <= FUSED[ops]

    def test_decoders_agree(self, photos):
        for photo in photos:
            a, b = (pixels(V.Chain(V.Decode()), device, photo.read_bytes()) for device in ("cpu", "cuda"))
            assert a.shape == b.shape and np.abs(a - b).mean() < 1, photo.name

    def test_a_broken_photograph_fails_alone(self, photo):
        chain, body = V.Chain(V.Decode(), V.Resize((64, 64)), V.Normalize()), photo.read_bytes()
        batch = chain.batch([body, b"no image", body], device="cuda")
        assert batch.requests == (0, 2) and batch.items.is_cuda
        assert isinstance(batch.errors[1], DecodeError)

    def test_the_classifier_says_the_same(self, photos, lite0, chain):
        on_gpu = chain.batch([p.read_bytes() for p in photos], device="cuda").items.cpu().numpy()
        for image, photo in zip(on_gpu, photos):
            want = lite0(chain(photo)[None]).argmax()
            assert lite0(image[None]).argmax() == want, photo.name

    @pytest.mark.slow
    def test_memory_stays_flat(self, photos):
        import torch
        chain = V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())
        bodies = [p.read_bytes() for p in photos]
        for i in range(1_500):
            chain.batch([bodies[(i + k) % len(bodies)] for k in range(1 + i % 4)], device="cuda")
            if i == 500: used = torch.cuda.mem_get_info()[0]
        assert used - torch.cuda.mem_get_info()[0] < 256 << 20

def test_every_operation_is_compared_or_lacking():
    compared = {type(o).__name__ for ops in ON_BOTH for o in ops}
    assert set(OPS) - compared == {"Decode", "ToDtype", "Normalize"}      # these have tests of their own above

def test_names_that_types_cannot_check():
    "Names looked up by a text are CV-CUDA's own, by its stubs"
    try: files = distribution("cvcuda-cu13").files or ()
    except PackageNotFoundError:
        return missing("CV-CUDA's stubs are not installed (make test does, on Linux, x86-64)")
    stubs = next(f for f in files if f.name == "__init__.pyi").locate().read_text()
    has = lambda kind: set(re.findall(rf"    (\w+): ClassVar\[{kind}\]", stubs))
    assert set(CONVERSIONS) <= has("ColorConversion")
    assert {t.upper() for t in THRESHOLDS} | {"OTSU"} <= has("ThresholdType")

def test_nvimgcodec_takes_our_arguments(photo):
    "nvImageCodec has no stubs: its constructors and the signature of `decode` check our calls"
    try: from nvidia import nvimgcodec
    except ImportError:
        return missing("nvImageCodec is not installed (make test installs it on Linux, x86-64)")
    params = decode_params(V.Decode("GRAY", apply_exif_orientation=False))
    assert params.color_spec == nvimgcodec.ColorSpec.GRAY
    stream = open_stream(photo.read_bytes())
    assert (stream.width, stream.height) == (512, 600) and open_stream(b"no image") is None
    with pytest.raises(TypeError): nvimgcodec.DecodeParams(apply_exif=True)
    decode = nvimgcodec.Decoder.decode.__doc__
    streams = r"srcs: collections.abc.Sequence\[\S*CodeStream\]"
    assert re.search(rf"decode\(self.*, {streams}, .*params: \S*DecodeParams .*cuda_stream: ", decode)
    assert re.search(r"__init__\(self.*, device_id: ", nvimgcodec.Decoder.__init__.__doc__)

def test_torch_tensorrt_knows_our_options():
    "It swallows keywords that it does not know, so they are looked up in its source"
    source = Path(sys.prefix, "stubs", "torch_tensorrt", "dynamo", "_compiler.py")
    if not source.exists():
        return missing("torch_tensorrt's sources are not here (make test has them, on Linux, x86-64)")
    functions = [f for f in ast.parse(source.read_text()).body if isinstance(f, ast.FunctionDef)]
    [compiler] = [f for f in functions if f.name == "compile"]
    known = {a.arg for a in (*compiler.args.args, *compiler.args.kwonlyargs)}
    options = set(tensorrt_arguments((), {}, Path("cache")).options)
    assert options <= known and "arg_inputs" in known and "enabled_precisions" not in known | options


class TestWithoutOne:
    "The code for a GPU, on a device that is not there"

    @pytest.fixture
    def codec(self, monkeypatch): return fake_cuda.install(monkeypatch)

    def classifier(self, lite0, monkeypatch, stem: str = "imagenet_classifier", **config) -> LocalHandler:
        monkeypatch.setattr(loading, "open_artifact", lambda folder, config, threads, context: fake_cuda.Session(lite0.load(1)))
        kind = next(v for v in vars(handler_module(stem)).values() if isinstance(v, type) and issubclass(v, Handler) and v is not Handler)
        return kind.local(lite0, folder=samples.imagenet_labels().parent, **config)

    @pytest.mark.parametrize("stem", ["imagenet_classifier", "quality_inspection"])
    def test_a_handler_answers_photographs(self, stem, codec, lite0, photos, monkeypatch):
        "Twelve photographs, chain and network on the device: the answers of the CPU"
        twelve = (photos * 12)[:12]
        served = self.classifier(lite0, monkeypatch, stem, device="cuda")
        answers = served.predict(twelve)
        assert len(answers) == 12 and served.handler.split_by is None
        want = [lite0(handler_module(stem).chain(p)[None])[0] for p in photos]
        names = {int(k): v for k, v in json.loads(samples.imagenet_labels().read_text()).items()}
        first = [a[0]["label"] if isinstance(a, list) else a["label"] for a in answers]
        assert first[:len(photos)] == [names[int(w.argmax())] for w in want][:12]
        assert set(served.handler.clock.seconds()) == {
            "read", "decode", "preprocess", "inference", "postprocess", "encode"}

    def test_numpy_does_not_meet_a_device_tensor(self, codec, lite0, photo, monkeypatch):
        "The check can fail: a handler that hands scores to NumPy answers nothing"
        class Careless(handler_module("imagenet_classifier").ImagenetClassifier):
            def postprocess(self, outputs): return np.asarray(outputs).argmax(1)
        monkeypatch.setattr(loading, "open_artifact", lambda *args: fake_cuda.Session(lite0.load(1)))
        careless = Careless.local(lite0, folder=samples.imagenet_labels().parent, device="cuda")
        with pytest.raises(TypeError, match="device type tensor to numpy"): careless.predict(photo)

    def test_batches_are_met_before_requests(self, codec, lite0, monkeypatch):
        served = self.classifier(lite0, monkeypatch, device="cuda")
        assert sorted(served.handler.session.sizes) == [1, 8, 32]
        hardware, hybrid = ("HW_GPU_ONLY", "HYBRID_CPU_GPU"), ("HYBRID_CPU_GPU",)
        assert codec.decoded == {hardware: 1 + 4 + 16, hybrid: 4 + 16}

    def test_each_image_goes_to_its_decoder(self, codec, photo):
        image = PIL.Image.open(photo).convert("RGB")
        def encoded(kind="JPEG", mode="RGB", **how):
            out = io.BytesIO()
            image.convert(mode).save(out, kind, **how)
            return out.getvalue()
        progressive, scan = encoded(progressive=True), b"\xff\xda"
        bodies = [
            encoded(), encoded(subsampling=0), progressive, encoded(keep_rgb=True),
            encoded(mode="CMYK"), encoded("PNG"), encoded()[:-2], b"no image", encoded("JPEG", "L"),
            progressive.replace(scan, 2 * scan * 60)]
        chain = V.Chain(V.Decode(), V.Resize(128), V.CenterCrop(112), V.Normalize())
        batch = chain.batch(bodies, device="cuda", threads=2)
        assert codec.decoded == {("HW_GPU_ONLY", "HYBRID_CPU_GPU"): 2, ("HYBRID_CPU_GPU",): 1}
        assert set(batch.errors) == {6, 7, 9} and batch.requests == (0, 1, 2, 3, 4, 5, 8)
        assert isinstance(batch.items, fake_cuda.DeviceTensor)
        want = np.stack([chain(b) for i, b in enumerate(bodies) if i not in batch.errors])
        assert np.abs(fake_cuda.on_host(batch.items).numpy() - want).mean() < 0.05

    def test_a_word_that_names_no_device_is_an_error(self, codec, lite0, monkeypatch):
        for word in ("gpu", "CUDA", "cuda:9", "cuda:"):
            with pytest.raises(ToolkitError, match="no such device|does not exist"): self.classifier(lite0, monkeypatch, device=word)

    def test_a_worker_ends_after_an_error_that_no_call_survives(self, codec, lite0, photo, monkeypatch):
        ended = []
        monkeypatch.setattr(runner, "end_process", ended.append)
        served = self.classifier(lite0, monkeypatch, device="cuda")
        def lost(x):
            monkeypatch.setattr(fake_cuda.Event, "lost", True)
            raise torch.AcceleratorError(fake_cuda.LOST)
        lost.device = "cuda:0"
        served.handler.session = lost
        rows = lambda: receive(served.service, [encode_request(photo)])
        for _ in range(2):
            [body] = served.handler.handle(rows(), served.service.context)
            assert json.loads(body)["error"]["code"] == 500
        assert len(ended) == 1 and "illegal memory access" in str(ended[0])

    def test_other_errors_end_no_worker(self, codec, lite0, photo, monkeypatch):
        "Out of memory on a GPU, and a caller whose request says what a lost context would"
        ended = []
        monkeypatch.setattr(runner, "end_process", ended.append)
        served = self.classifier(lite0, monkeypatch, device="cuda")
        def full(x): raise torch.OutOfMemoryError("CUDA out of memory")
        full.device = "cuda:0"
        served.handler.session = full
        for x in (photo, {"CUDA error: device-side assert": 1}): served.handler.handle(receive(served.service, [encode_request(x)]), served.service.context)
        assert not ended

class Graph:
    "A captured graph: a replay computes the outputs of its inputs in place"
    def __init__(self, ins, outs): self.ins, self.outs = ins, outs
    def replay(self): self.outs[0].copy_(self.ins[0] * 2 + 1)

ROWS = TensorSpec("scores", "float32", ("batch", 4))

class TestGraphs:
    def runner(self, monkeypatch, capture) -> GraphRunner:
        monkeypatch.setattr(GraphRunner, "_capture", capture)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self)
        return GraphRunner(lambda xs: [xs[0] * 2 + 1], graph_sizes([Dim("batch", 1, 3, 8)], [ROWS], "cuda"))

    def record_event(self): return "copied"
    def wait_event(self, event): assert event == "copied"

    def test_a_batch_goes_into_the_next_captured_size(self, monkeypatch):
        def capture(self, ins):
            outs = [torch.full_like(ins[0], torch.nan)]
            return Graph(ins, outs), ins, outs
        run, kept = self.runner(monkeypatch, capture), []
        for n in (5, 1, 3, 8, 2, 5, 9):
            x = torch.randn(n, 4)
            [y] = run([x])
            kept.append((y, x * 2 + 1))
        assert all(torch.equal(y, want) for y, want in kept)      # what was given stays as it was
        assert set(run._graphs) == {1, 2, 3, 8}                   # 9 is larger than all, and ran as it is

    def test_a_model_that_cannot_be_captured_runs_without(self, monkeypatch):
        def capture(self, ins): raise RuntimeError("operation not permitted when stream is capturing")
        run = self.runner(monkeypatch, capture)
        assert torch.equal(run([torch.ones(2, 4)])[0], torch.full((2, 4), 3.0)) and run.sizes == ()

    def test_sizes(self):
        batch, length = Dim("batch", 1, 8, 32), Dim("length", 1, 16, 128)
        assert graph_sizes([batch], [ROWS], "cuda:0") == (1, 2, 4, 8, 16, 32)
        assert graph_sizes([Dim("batch", 2, 6, 10)], [ROWS], "cuda") == (2, 4, 6, 8, 10)
        assert graph_sizes([batch], [ROWS], "cpu") == graph_sizes([batch, length], [ROWS], "cuda") == ()

    def test_the_rest_of_a_batch_is_zeros(self, monkeypatch):
        "Nothing of an earlier request is in a later one, whatever the model does with its batch"
        class Largest(Graph):
            def replay(self): self.outs[0].copy_(self.ins[0] / self.ins[0].abs().amax())
        def capture(self, ins):
            outs = [torch.zeros_like(ins[0])]
            return Largest(ins, outs), ins, outs
        run = self.runner(monkeypatch, capture)
        run([torch.full((8, 4), 100.0)])
        assert torch.equal(run([torch.ones(5, 4)])[0], torch.ones(5, 4))

    def test_tensors_of_inference_mode_and_of_training(self, monkeypatch):
        def capture(self, ins):
            outs = [torch.zeros_like(ins[0])]
            return Graph(ins, outs), ins, outs
        run = self.runner(monkeypatch, capture)
        with torch.inference_mode(): run([torch.ones(2, 4)])
        run([torch.ones(2, 4, requires_grad=True)])
        assert not run._graphs[2][1][0].requires_grad
        assert torch.equal(run([torch.ones(2, 4)])[0], torch.full((2, 4), 3.0))

@pytest.mark.slow
def test_a_file_must_load_in_a_new_process(tmp_path):
    "As every server loads it; what crashes there, hangs there or raises there is an error here"
    artifact = compile_model(torch.nn.Linear(4, 2), torch.ones(1, 4), backend="eager", batch=(1, 2, 4), path=tmp_path / "net", measure=False)
    how, xs = LoadOptions(), (torch.ones(2, 4),)
    check_opens(BACKENDS["eager"], artifact.path, how, xs)
    with pytest.raises(ToolkitError, match="nothing after 0 s"): check_opens(BACKENDS["eager"], artifact.path, how, xs, seconds=0.01)
    (artifact.path / "program.pt2").write_bytes(b"damaged")
    with pytest.raises(ToolkitError, match="does not load in a new process"): check_opens(BACKENDS["eager"], artifact.path, how, xs)
    assert not list(tmp_path.glob("*.inputs"))

def test_onnxruntime_on_cuda_is_told_everything():
    name, options = cuda_provider(LoadOptions(device="cuda:1", precision="fp32"), 99)
    assert name == "CUDAExecutionProvider"
    assert options == {"device_id": "1", "user_compute_stream": "99", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert cuda_provider(LoadOptions(device="cuda", precision="tf32"), 0)[1]["use_tf32"] == "1"
