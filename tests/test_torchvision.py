"""A chain of a torchvision or timm pipeline against the pipeline itself, on every photograph.

torchvision brings CUDA's PyTorch, so this has an environment of its own; without torchvision it is skipped.
"""
import sys, types
from importlib.util import find_spec
from pathlib import Path

import numpy as np, PIL.Image, pytest

torch = pytest.importorskip("torch")

def _import_torchvision():
    "torchvision; where its operators (`nms` ...) need a CUDA that is not here, without them: transforms use none"
    try: import torchvision
    except RuntimeError:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]: del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")
        import torchvision
    return torchvision

if not find_spec("torchvision"): pytest.skip("torchvision is not installed", allow_module_level=True)
_import_torchvision()

from torchvision import transforms as T
from torchvision.transforms import _presets as presets, v2

from zztoolkit.core import cache_dir
from zztoolkit.vision import Chain, sample_photo

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
