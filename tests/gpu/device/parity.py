"""Compare the CPU with CUDA: operations, chains in one call, kinds of images.

Nothing is asserted: what differs, and what fails, is reported.
"""
from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import test_gpu as T
from common import finding, photographs
from zztoolkit import vision as V
from zztoolkit.errors import RequestError


def describe_op(op: Any) -> str:
    "An operation with every option that is not its default: Resize(size=200, antialias=False)"
    given = {f.name: getattr(op, f.name) for f in fields(op)}
    defaults = {f.name: f.default for f in fields(op) if f.default is not MISSING}
    chosen = {name: v for name, v in given.items() if defaults.get(name, MISSING) != v}
    options = [f"{name}={value}" for name, value in chosen.items()]
    return f"{type(op).__name__}({', '.join(options)})"


def describe_ops(ops: Sequence[Any]) -> str: return " ".join(map(describe_op, ops))


def compare_operations(images: Sequence[np.ndarray]):
    for ops, allowed in T.ON_BOTH.items():
        with finding("operation", ops=describe_ops(ops), allowed=allowed) as found:
            chain = V.Chain(*ops)
            off = [np.abs(T.pixels(chain, "cpu", i) - T.pixels(chain, "cuda", i)) for i in images]
            found["largest"] = int(max(o.max() for o in off))
            found["mean"] = round(float(np.mean([o.mean() for o in off])), 4)
            found["over_1"] = round(float(np.mean([(o > 1).mean() for o in off])), 5)


def compare_fused(images: Sequence[np.ndarray]):
    "Differences are in 1/255 of a pixel's range"
    for ops, allowed in T.FUSED.items():
        with finding("fused", ops=describe_ops(ops), allowed=allowed) as found:
            chain = V.Chain(*ops)
            std = np.array(getattr(ops[-1], "std", (1,)))[:, None, None]
            on_gpu = chain.batch(images, device="cuda").items.cpu().numpy()
            on_cpu = np.stack([chain.plan(exact=True)(i) for i in images])
            off = 255 * std * np.abs(on_gpu - on_cpu)
            found["largest"] = round(float(off.max()), 3)
            found["mean"] = round(float(off.mean()), 4)


def encode(image: Any, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def with_orientation(image: Any, orientation: int) -> bytes:
    "A JPEG whose EXIF data ask for a rotation"
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encode(image, "JPEG", exif=exif.tobytes(), quality=92)


def whole_bodies(image: Any) -> dict[str, bytes | bytearray]:
    "One image in every encoding"
    see_through = image.copy()
    see_through.putalpha(100)
    return {f"EXIF {n}": with_orientation(image, n) for n in range(1, 9)} | {
        "grey": encode(image.convert("L"), "JPEG"),
        "CMYK": encode(image.convert("CMYK"), "JPEG"),
        "4:4:4": encode(image, "JPEG", subsampling=0),
        "4:2:2": encode(image, "JPEG", subsampling=1),
        "RGB inside": encode(image, "JPEG", keep_rgb=True),
        "progressive": encode(image, "JPEG", progressive=True),
        "odd sizes": encode(image.resize((333, 111)), "JPEG"),
        "one pixel": encode(image.resize((1, 1)), "JPEG"),
        "PNG": encode(image, "PNG"),
        "PNG alpha": encode(see_through, "PNG"),
        "PNG palette": encode(image.quantize(), "PNG"),
        "WebP": encode(image, "WEBP"),
        "GIF": encode(image.quantize(), "GIF"),
        "BMP": encode(image, "BMP"),
        "TIFF": encode(image, "TIFF"),
        "bytearray": bytearray(encode(image, "JPEG", quality=92)),
    }


def broken_bodies(image: Any) -> dict[str, bytes]:
    "What a caller may send in place of an image"
    jpeg = encode(image, "JPEG", quality=92)
    noise = bytes(range(256)) * 4
    return {
        "cut in half": jpeg[:len(jpeg) // 2],
        "no end": jpeg[:-2],
        "noise in the middle": jpeg[:4000] + noise + jpeg[4000 + len(noise):],
        "head only": jpeg[:650],
        "not an image": b"no image",
    }


def decode(body: Any, mode: str, device: str) -> np.ndarray | Exception:
    "The pixels of one body, or why there are none"
    [answer] = V.Chain(V.Decode(mode)).batch([body], device=device).results()
    if isinstance(answer, Exception): return answer
    return (answer if isinstance(answer, np.ndarray) else answer.cpu().numpy()).astype(int)


def describe(answer: np.ndarray | Exception) -> Any:
    "The shape of an image, or the error"
    if isinstance(answer, Exception): return f"{type(answer).__name__}: {answer}"[:140]
    return answer.shape


def compare_bodies(bodies: dict[str, Any], mode: str):
    for name, body in bodies.items():
        with finding("decode", body=name, mode=mode) as found:
            cpu, gpu = decode(body, mode, "cpu"), decode(body, mode, "cuda")
            errors = [x for x in (cpu, gpu) if isinstance(x, Exception)]
            if errors or cpu.shape != gpu.shape:        # type: ignore[union-attr]
                found["cpu"], found["cuda"] = describe(cpu), describe(gpu)
                found["callers_fault_on_both"] = all(isinstance(e, RequestError) for e in errors)
            else:
                off = np.abs(cpu - gpu)                 # type: ignore[operator]
                found["largest"], found["mean"] = int(off.max()), round(float(off.mean()), 3)


def decode_together(bodies: dict[str, Any]):
    "All of them as one batch: does each fail alone?"
    with finding("one batch of all of them") as found:
        chain, names = V.Chain(V.Decode(), V.Resize((64, 64)), V.Normalize()), list(bodies)
        batch = chain.batch(list(bodies.values()), device="cuda")
        found["alive"], found["split_by"] = len(batch), str(batch.split_by)[:300]
        found["errors"] = {names[i]: str(describe(e)) for i, e in batch.errors.items()}


def main(paths: Sequence[Path] | None = None):
    paths = list(paths or photographs())
    shrink = V.Chain(V.Decode(), V.Resize(480))
    images = [shrink(p) for p in paths if not p.stem.startswith("Grey")]
    compare_operations(images)
    compare_fused(images)
    small = PIL.Image.open(paths[0]).convert("RGB").resize((800, 533))
    photos = {p.stem: p.read_bytes() for p in paths}
    made = whole_bodies(small) | broken_bodies(small)
    compare_bodies(photos | made, "RGB")
    compare_bodies(dict(list(photos.items())[:3]) | made, "GRAY")
    decode_together(photos | made)


if __name__ == "__main__": main()
