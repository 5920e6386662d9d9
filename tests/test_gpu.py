"What needs a GPU, and what can be said of it without one. Every image operation on both engines, over real photographs: `make gpu` on a machine with an NVIDIA GPU. Collected everywhere."
import ast, json, re, sys, time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np, pytest

from conftest import missing
from zztoolkit import cuda, vision as V
from zztoolkit.core import DecodeError, installed
from zztoolkit.engines import tensorrt_arguments
from zztoolkit.ops import CONVERSIONS, THRESHOLDS

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(bool(cuda.why_not()), reason=cuda.why_not() or "-")]

GREY, SMALL = V.CvtColor("RGB2GRAY"), V.Resize((240, 320))
# Operation, and the largest difference of a pixel in 1/255. Above 1: fixed-point weights of 1/32 of a pixel in OpenCV's warps and of 1/2048 in its cubic
# resize; HSV's hue where saturation is low; histograms where a rounding moves a whole level; thresholds, where a rounding turns black into white.
ON_BOTH = {
    (SMALL,): 1, (V.Resize(200, "bicubic"),): 1, (V.Resize(200, antialias=False),): 1, (V.Resize(200, "bicubic", antialias=False),): 2, (V.Resize(200, "area"),): 1,
    (V.Resize(200, "nearest"),): 0, (V.Resize(200, "nearest-exact"),): 0, (V.CenterCrop(300),): 0, (V.Crop(10, 20, 300, 200),): 0, (V.Letterbox(256),): 1,
    (V.Pad(9, 7),): 0, (V.Pad((1, 2, 3, 4), padding_mode="edge"),): 0, (V.Pad(9, padding_mode="reflect"),): 0, (V.Pad(9, padding_mode="symmetric"),): 0,
    (V.Flip("horizontal"),): 0, (V.Flip("vertical"),): 0, (V.Flip("both"),): 0, (SMALL, V.Rotate(17)): 8, (SMALL, V.Warp(((1, .1, 5), (0, 1, -3)))): 8,
    (SMALL, V.Warp(((1, .1, 5), (0, 1, -3), (0, .0005, 1)), size=(100, 90))): 8, (V.GaussianBlur(5, 1.2),): 1, (V.GaussianBlur((3, 7), 2.0),): 1, (V.MedianBlur(3),): 0, (V.MedianBlur(5),): 0,
    (V.Morphology("erode", 3),): 0, (V.Morphology("dilate", (3, 5), 2),): 0, (V.Morphology("open", 5),): 0, (V.Morphology("close", 3),): 0,
    (GREY,): 1, (V.CvtColor("RGB2BGR"),): 0, (V.CvtColor("RGB2YUV"),): 1, (V.CvtColor("RGB2HSV"),): 2, (V.Equalize(),): 1, (GREY, V.CLAHE(2.0)): 2,
    (V.Threshold(100),): 0, (V.Threshold(100, type="trunc"),): 0, (GREY, V.Threshold(otsu=True)): 255}


def pixels(chain: V.Chain, device: str, image: np.ndarray) -> np.ndarray:
    made = chain.plan(device, exact=True)(image)
    return (made if isinstance(made, np.ndarray) else made.cpu().numpy()).astype(int)

# Chains that one call of CV-CUDA does for a whole batch, and the largest difference of what they give, in 1/255 of a pixel's range
FUSED = {(V.Resize(256), V.CenterCrop(224), V.Normalize()): 1.01, (V.Resize((200, 300)), V.CenterCrop((250, 224)), V.Normalize()): 1.01,
         (V.Resize((256, 300), antialias=False), V.CenterCrop(224), V.ToDtype()): 1.01}

@pytest.fixture(scope="module")
def record(request):
    "What was measured, written as JSON to --record with the device, the date and the versions"
    measured: dict = {"operations": {}, "fused": {}}
    yield measured
    if not (path := request.config.getoption("--record")) or not any(measured.values()): return
    import torch
    about = {"device": torch.cuda.get_device_name(), "date": time.strftime("%Y-%m-%d"), "versions": {d: installed(d) for d in ("torch", "cvcuda-cu13", "nvidia-nvimgcodec-cu13")}}
    with open(path, "w") as f: json.dump(about | measured, f, indent=1)

def named(ops: tuple) -> str: return " ".join(map(repr, ops))

class TestOnGpu:
    pytestmark = needs_gpu

    @pytest.mark.parametrize("ops", ON_BOTH, ids=named)
    def test_same_pixels_on_both_engines(self, ops, photos, record):
        seen = record["operations"][named(ops)] = {"allowed": ON_BOTH[ops], "largest": 0, "mean": 0.0}
        for photo in photos:
            image = V.Chain(V.Decode(), V.Resize(480))(photo)       # decoders differ by a level; each operation is compared on the same pixels
            a, b = (pixels(V.Chain(*ops), device, image) for device in ("cpu", "cuda"))
            assert a.shape == b.shape
            off = np.abs(a - b)
            seen |= {"largest": max(seen["largest"], int(off.max())), "mean": max(seen["mean"], float(off.mean()))}
            assert off.max() <= ON_BOTH[ops] and (off > 1).mean() < 0.01, photo.name

    @pytest.mark.parametrize("ops", FUSED, ids=named)
    def test_one_call_for_a_batch_of_any_sizes(self, ops, photos, record):
        images = [V.Chain(V.Decode(), V.Resize(480))(photo) for photo in photos]
        chain, std = V.Chain(*ops), max(getattr(ops[-1], "std", (1,)))
        off = 255 * std * np.abs(chain.batch(images, device="cuda").items.cpu().numpy() - np.stack([chain.plan(exact=True)(i) for i in images]))
        record["fused"][named(ops)] = {"allowed": FUSED[ops], "largest": float(off.max()), "mean": float(off.mean())}
        assert off.max() <= FUSED[ops]

    def test_decoders_agree(self, photos):
        for photo in photos:
            a, b = (pixels(V.Chain(V.Decode()), device, photo.read_bytes()) for device in ("cpu", "cuda"))
            assert a.shape == b.shape and np.abs(a - b).mean() < 1, photo.name

    def test_a_broken_photograph_fails_alone(self, photo):
        batch = V.Chain(V.Decode(), V.Resize((64, 64)), V.Normalize()).batch([photo.read_bytes(), b"no image", photo.read_bytes()], device="cuda")
        assert batch.requests == (0, 2) and batch.items.is_cuda and isinstance(batch.errors[1], DecodeError)

    def test_the_classifier_says_the_same(self, photos, lite0, chain):
        on_gpu = chain.batch([p.read_bytes() for p in photos], device="cuda").items.cpu().numpy()
        for image, photo in zip(on_gpu, photos): assert lite0(image[None]).argmax() == lite0(chain(photo)[None]).argmax(), photo.name

    @pytest.mark.slow
    def test_memory_stays_flat(self, photos):
        import torch
        chain, bodies = V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize()), [p.read_bytes() for p in photos]
        for i in range(10_000):
            chain.batch([bodies[(i + k) % len(bodies)] for k in range(1 + i % 4)], device="cuda")
            if i == 500: used = torch.cuda.mem_get_info()[0]
        assert used - torch.cuda.mem_get_info()[0] < 256 << 20

def test_every_operation_is_compared_or_lacking():
    compared = {type(o).__name__ for ops in ON_BOTH for o in ops}
    assert set(V.OPS) - compared == {"Decode", "ToDtype", "Normalize"}      # these have tests of their own above

def test_names_that_types_cannot_check():
    "Names looked up by a text are CV-CUDA's own, by its stubs"
    try: stubs = next(f for f in distribution("cvcuda-cu13").files or () if f.name == "__init__.pyi").locate().read_text()
    except PackageNotFoundError: return missing("CV-CUDA's stubs are not installed (make test installs them on Linux, x86-64)")
    has = lambda kind: set(re.findall(rf"    (\w+): ClassVar\[{kind}\]", stubs))
    assert set(CONVERSIONS) <= has("ColorConversion") and {t.upper() for t in THRESHOLDS} | {"OTSU"} <= has("ThresholdType")

def test_nvimgcodec_takes_our_arguments(photo):
    "nvImageCodec has no stubs; its own constructors and the signature of `decode` are what our calls are held against"
    try: from nvidia import nvimgcodec
    except ImportError: return missing("nvImageCodec is not installed (make test installs it on Linux, x86-64)")
    assert cuda._parameters(V.Decode("GRAY", apply_exif_orientation=False)).color_spec == nvimgcodec.ColorSpec.GRAY
    [stream] = cuda._streams([photo.read_bytes()])
    assert (stream.width, stream.height) == (512, 600)
    with pytest.raises(TypeError): nvimgcodec.DecodeParams(apply_exif=True)
    decode = nvimgcodec.Decoder.decode.__doc__
    assert re.search(r"decode\(self.*, srcs: collections.abc.Sequence\[\S*CodeStream\], .*params: \S*DecodeParams .*cuda_stream: ", decode)
    assert re.search(r"__init__\(self.*, device_id: ", nvimgcodec.Decoder.__init__.__doc__)

def test_torch_tensorrt_knows_our_options():
    "It swallows keywords that it does not know, so they are looked up in its source"
    source = Path(sys.prefix, "stubs", "torch_tensorrt", "dynamo", "_compiler.py")
    if not source.exists(): return missing("torch_tensorrt's sources are not here (make test brings them on Linux, x86-64)")
    [compiler] = [f for f in ast.parse(source.read_text()).body if isinstance(f, ast.FunctionDef) and f.name == "compile"]
    known = {a.arg for a in (*compiler.args.args, *compiler.args.kwonlyargs)}
    options = set(tensorrt_arguments((), {}, Path("cache")).options)
    assert options <= known and "arg_inputs" in known and "enabled_precisions" not in known | options
