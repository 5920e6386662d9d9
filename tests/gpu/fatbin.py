"""Keep one GPU architecture's machine code in a shared library, and blank the rest.

    python tests/gpu/fatbin.py library.so 90 slim.so

A fat binary is a header (magic, version, header size, bytes that follow) and entries. An entry is
a header (kind 1 for PTX or 2 for machine code, header size, payload size, ..., architecture) and a
payload. The bytes of the other architectures become zeros, which compress to nothing. A fat binary
without machine code for the architecture stays as it is. Check the result with
`cuobjdump --list-elf` (pip: nvidia-cuda-cuobjdump). Use it on Apache-2.0 and MIT libraries only:
CV-CUDA, cuDF and ONNX Runtime.
"""
from __future__ import annotations

import struct, sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = 16                 # bytes of a fat binary's header
PTX, MACHINE_CODE = 1, 2    # kinds of entries


@dataclass(frozen=True)
class Entry:
    "One architecture's code in a fat binary"
    start: int      # offset in the file
    size: int       # bytes, header included
    kind: int
    arch: int       # 90 for an H100 or an H200


def read_entries(data: bytes | bytearray, start: int, end: int) -> Iterator[Entry]:
    "Yield the entries between two offsets, up to the first that is none"
    while start + 64 <= end:
        kind, _, header, payload = struct.unpack_from("<HHIQ", data, start)
        [arch] = struct.unpack_from("<I", data, start + 28)
        size = header + payload
        if kind not in (PTX, MACHINE_CODE): return
        if not 64 <= header <= 4096 or start + size > end: return
        yield Entry(start, size, kind, arch)
        start += size


def keep_only(data: bytearray, entries: list[Entry], at: int, end: int):
    "Rewrite the fat binary at `at` so that it holds these entries alone"
    body = b"".join(bytes(data[e.start:e.start + e.size]) for e in entries)
    room = end - at - HEADER
    data[at + HEADER:end] = body + bytes(room - len(body))
    struct.pack_into("<Q", data, at + 8, len(body))


def slim(data: bytearray, arch: int) -> tuple[int, int]:
    "Slim every fat binary of a library in place. Return how many were slimmed, and how many not"
    slimmed = untouched = 0
    at = data.find(MAGIC)
    while at >= 0:
        _, version, header, size = struct.unpack_from("<IHHQ", data, at)
        end = at + HEADER + size
        is_fat_binary = version == 1 and header == HEADER and end <= len(data)
        entries = list(read_entries(data, at + HEADER, end)) if is_fat_binary else []
        wanted = [e for e in entries if e.kind == MACHINE_CODE and e.arch == arch]
        if wanted:
            keep_only(data, wanted, at, end)
            slimmed += 1
        elif entries: untouched += 1
        at = data.find(MAGIC, end if entries else at + len(MAGIC))
    return slimmed, untouched


if __name__ == "__main__":
    source, architecture, target = sys.argv[1:]
    library = bytearray(Path(source).read_bytes())
    slimmed, untouched = slim(library, int(architecture))
    Path(target).write_bytes(library)
    print(f"slimmed {slimmed} fat binaries, left {untouched}")
