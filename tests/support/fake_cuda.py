"""A simulated CUDA device: its tensors reject NumPy, its libraries check their calls and run on the CPU.

It finds what a GPU would reject: a tensor converted silently, memory handed to CV-CUDA without its
stream, a device that is not current. It says nothing about CV-CUDA's own results.
"""
from __future__ import annotations

import sys, types
from types import SimpleNamespace

import numpy as np, torch

from zztoolkit import vision as V
from zztoolkit.vision import bridge, cuda, cuda_decode, cuda_kernels
from zztoolkit.vision.bridge import keep_memory
from zztoolkit.vision.cuda_decode import make_decoder
from zztoolkit.vision.cuda_kernels import NO_FLIP
from zztoolkit.vision.reading import decode_image

STREAM = 7       # of the fake torch.cuda.current_stream


class DeviceTensor(torch.Tensor):
    "A tensor that NumPy may not read; `.cpu()` and `.tolist()` copy it to the host"
    is_cuda = True

    def __array__(self, *args, **kw):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
    def numpy(self, *args, **kw): return self.__array__()
    def cpu(self): return on_host(self)

    @property
    def device(self): return torch.device("cuda", 0)

    @property
    def __cuda_array_interface__(self):
        host = on_host(self)
        assert host.is_contiguous()
        return {"data": (host.data_ptr(), False), "shape": tuple(host.shape), "version": 2, "typestr": "|u1"}

    def to(self, *args, **kw):
        args = tuple(a for a in args if not is_device(a))
        kw = {k: v for k, v in kw.items() if k not in ("device", "non_blocking")}
        return super().to(*args, **kw) if args or kw else self

def is_device(x) -> bool:
    if isinstance(x, str): return x.startswith(("cpu", "cuda"))
    return isinstance(x, torch.device)

def on_host(x: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass(): return x.as_subclass(torch.Tensor)

def on_device(x) -> DeviceTensor:
    if isinstance(x, np.ndarray): x = torch.from_numpy(np.ascontiguousarray(x).copy())
    return torch.as_tensor(x).as_subclass(DeviceTensor)


class Codec(types.ModuleType):
    "nvImageCodec, by the CPU's decoder; `decoded` counts the images of each kind of decoder"
    def __init__(self):
        super().__init__("nvidia.nvimgcodec")
        self.decoded: dict[tuple, int] = {}
        kinds = "HW_GPU_ONLY", "HYBRID_CPU_GPU"
        self.BackendKind = SimpleNamespace(**{kind: kind for kind in kinds})
        self.ColorSpec = SimpleNamespace(GRAY="GRAY", SRGB="RGB")

    def Backend(self, kind): return kind
    def CodeStream(self, body): return SimpleNamespace(body=body, width=1)

    def DecodeParams(self, apply_exif_orientation, color_spec):
        return V.Decode(color_spec, apply_exif_orientation=apply_exif_orientation)

    def Decoder(self, device_id: int, max_num_cpu_threads: int, backends=()):
        def decode(bodies, params, cuda_stream):
            assert cuda_stream == STREAM and max_num_cpu_threads >= 1
            kind = tuple(backends)
            self.decoded[kind] = self.decoded.get(kind, 0) + len(bodies)
            return [decode_image(params, stream.body) for stream in bodies]
        return SimpleNamespace(decode=decode)


def library() -> types.ModuleType:
    "CV-CUDA, as far as the chain of a classifier needs it"
    m = types.ModuleType("cvcuda")
    m.Format = SimpleNamespace(U8="U8", RGB8="RGB8", RGBA8="RGBA8")
    m.Interp = SimpleNamespace(LINEAR=1, CUBIC=2, AREA=3, NEAREST=0)
    m.Border, m.NormalizeFlags = SimpleNamespace(REPLICATE=1), SimpleNamespace(SCALE_IS_STDDEV=1)
    m.set_cache_limit_inbytes = lambda n: None
    m.as_stream = lambda stream: stream

    def share(buffer, layout="HWC"):
        interface = buffer.__cuda_array_interface__
        names_stream = interface["version"] == 3 and interface["stream"] == STREAM
        assert names_stream, "CV-CUDA would wait for the whole device"
        return on_host(buffer.tensor)
    m.as_tensor, m.as_images = share, lambda buffers, kind: [share(b) for b in buffers]

    def tvresize_into(outs, images, interp, antialias, stream):
        assert stream.cuda_stream == STREAM
        for out, image in zip(outs, images):
            h, w = out.shape[:2]
            out.copy_(torch.from_numpy(V.Chain(V.Resize((h, w))).plan()(image.numpy()).copy()))

    def crop_flip_normalize_reformat_into(out, images, rects, flips, base, scale, flags, border, stream):
        assert stream.cuda_stream == STREAM and bool((flips == NO_FLIP).all())
        for y, image, (left, top, w, h) in zip(out, images, rects.reshape(-1, 4).tolist()):
            middle = image[top:top + h, left:left + w].float()
            y.copy_(((middle - base.reshape(-1)) / scale.reshape(-1)).permute(2, 0, 1))

    m.tvresize_into, m.crop_flip_normalize_reformat_into = tvresize_into, crop_flip_normalize_reformat_into
    return m


LOST = "CUDA error: an illegal memory access was encountered"

class Event:
    "torch.cuda.Event on the host's clock; after `lose` it fails as everything of CUDA does"
    lost = False

    def __init__(self, enable_timing=False): self.at = 0.0
    def record(self, stream=None):
        import time
        if Event.lost: raise torch.AcceleratorError(LOST)
        self.at = time.perf_counter()
    def synchronize(self): pass
    def elapsed_time(self, other): return (other.at - self.at) * 1e3


def install(patch) -> Codec:
    "Replace CUDA by the simulated device, with pytest's monkeypatch. Return its decoder"
    codec, nvidia = Codec(), types.ModuleType("nvidia")
    nvidia.nvimgcodec = codec
    modules = {"cvcuda": library(), "nvidia": nvidia, "nvidia.nvimgcodec": codec}
    for name, module in modules.items(): patch.setitem(sys.modules, name, module)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    patch.setattr(torch.cuda, "set_device", lambda i: None)
    stream = SimpleNamespace(cuda_stream=STREAM)
    patch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    patch.setattr(torch.cuda, "Event", Event)
    patch.setattr(Event, "lost", False)
    patch.setattr(torch, "empty", empty_on_device(torch.empty))
    install_vision(patch)
    return codec

def install_vision(patch):
    "Let the vision package make its tensors on the simulated device"
    for name in ("empty_image", "constant", "pixel_indices", "no_flips"):
        patch.setattr(cuda_kernels, name, make_on_device(getattr(cuda_kernels, name)))
    patch.setattr(bridge, "unavailable_reason", lambda: "")
    patch.setattr(bridge, "keep_pool", lambda device, limit: None)
    for module in (cuda_decode, cuda_kernels): patch.setattr(module, "upload", upload)
    for module in (cuda, cuda_decode): patch.setattr(module, "to_current_device", on_device)
    for cached in (make_decoder, keep_memory): cached.cache_clear()

def empty_on_device(empty):
    "Return `torch.empty` that marks the tensors of the simulated device"
    def make(*args, device=None, **kw):
        if device is None or torch.device(device).type != "cuda":
            return empty(*args, device=device, **kw)
        return empty(*args, **kw).as_subclass(DeviceTensor)
    return make

def upload(x, device):
    "The fake of `bridge.upload`"
    return on_device(np.asarray(x, np.int32) if isinstance(x, list) else x)

def make_on_device(f):
    "Return a function that makes its tensor on the CPU and marks it as the device's"
    f = getattr(f, "__wrapped__", f)      # not from a cache that outlives the fake
    def make(*args):
        host = tuple(torch.device("cpu") if isinstance(a, torch.device) else a for a in args)
        return on_device(f(*host))
    return make


class Session:
    "A loaded artifact whose outputs are on the device, as those of CUDA's backends are"
    def __init__(self, session):
        self.artifact, self.cpu, self.device, self.sizes = session.artifact, session, "cuda:0", []

    def __call__(self, x):
        assert isinstance(x, DeviceTensor), f"the network got {type(x).__name__} from a chain on CUDA"
        self.sizes.append(len(x))
        return on_device(self.cpu(on_host(x)))

    def warm_up(self):
        batch = self.artifact.batch
        shape = self.artifact.inputs[0].shape[1:]
        for n in sorted({batch.min, batch.opt, batch.max}): self(on_device(torch.zeros(n, *shape)))
