"""Say what the machine is, and try each library's first call."""
from __future__ import annotations

import glob, os, platform, shutil, subprocess, sys, time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import finding, gpu_ms, photographs

PACKAGES = ("torch", "torchvision", "triton", "cupy-cuda13x", "onnxruntime", "numpy", "pandas",
            "pyarrow", "numba", "numba-cuda", "nvidia-nvjitlink", "nvidia-cuda-runtime",
            "nvidia-cudnn-cu13", "cvcuda-cu13", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg")
PROGRAMS = ("nvcc", "g++", "java", "xz", "nvidia-cuda-mps-control")
BACKENDS = ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU", "CPU_ONLY")


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"): return line.split(":")[1].strip()
    return platform.machine()


def installed_version(package: str) -> str:
    try: return version(package)
    except PackageNotFoundError: return ""


def describe_machine():
    with finding("machine") as found:
        found["cores"], found["cpu"] = os.cpu_count(), processor()
        found["python"] = sys.version.split()[0]
        found["has"] = {name: shutil.which(name) for name in PROGRAMS}
        found["cuda_home"] = glob.glob("/usr/local/cuda*")
        found["driver_capabilities"] = os.environ.get("NVIDIA_DRIVER_CAPABILITIES", "")
        query = "name,driver_version,memory.total,compute_mode,clocks.max.sm"
        found["gpu"] = output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    with finding("versions") as found: found |= {name: installed_version(name) for name in PACKAGES}


def try_torch():
    with finding("torch") as found:
        import torch
        source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        ms = gpu_ms(lambda: target.copy_(source))["ms"]
        found["device"] = torch.cuda.get_device_name()
        found["copy_TB_s"] = round(2 * source.numel() / ms / 1e9, 2)
        found["tf32_conv"] = torch.backends.cudnn.allow_tf32
        pinned = torch.randn(224 << 14, pin_memory=True)
        ms = gpu_ms(lambda: pinned.to("cuda", non_blocking=True))["ms"]
        found["upload_GB_s_pinned"] = round(4 * pinned.numel() / ms / 1e6, 1)


def try_cvcuda():
    "Is the machine code for this GPU there, and right?"
    with finding("cvcuda") as found:
        import cvcuda, torch
        image = torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8, device="cuda")
        flipped = cvcuda.flip(cvcuda.as_tensor(image, "HWC"), 1).cuda()
        found["version"] = cvcuda.__version__
        found["right"] = torch.equal(torch.as_tensor(flipped, device="cuda"), image.flip(1))


def try_nvimgcodec():
    with finding("nvimgcodec") as found:
        import torch
        from nvidia import nvimgcodec
        started = time.perf_counter()
        decoder = nvimgcodec.Decoder(device_id=0)
        found["decoder_s"] = round(time.perf_counter() - started, 2)
        [image] = decoder.decode([nvimgcodec.CodeStream(photographs()[0].read_bytes())])
        pixels = torch.as_tensor(image, device="cuda")
        found["shape"], found["mean"] = image.shape, float(pixels.float().mean())
        interface = image.__cuda_array_interface__
        found["interface"] = {k: v for k, v in interface.items() if k != "data"}


def try_backend(name: str):
    "Which photographs does one of nvImageCodec's backends decode?"
    with finding("backend", name=name) as found:
        from nvidia import nvimgcodec
        kind = getattr(nvimgcodec.BackendKind, name)
        decoder = nvimgcodec.Decoder(device_id=0, backends=[nvimgcodec.Backend(kind)])
        paths = photographs()
        images = decoder.decode([nvimgcodec.CodeStream(p.read_bytes()) for p in paths])
        found |= {p.stem: None if image is None else image.shape for p, image in zip(paths, images)}


def try_onnxruntime():
    with finding("onnxruntime") as found:
        import onnxruntime
        found["providers"] = onnxruntime.get_available_providers()


def find_mps():
    "Is NVIDIA's service there that lets processes share a GPU at the same time, not by turns?"
    with finding("mps") as found: found["path"] = shutil.which("nvidia-cuda-mps-control")


def main():
    describe_machine()
    find_mps()
    try_torch()
    try_cvcuda()
    try_nvimgcodec()
    for name in BACKENDS: try_backend(name)
    try_onnxruntime()


if __name__ == "__main__": main()
