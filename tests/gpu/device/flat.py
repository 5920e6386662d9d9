"""Watch memory while batches of changing sizes go through the chain."""
from __future__ import annotations

import time

from common import finding, photographs, used_mib

SECONDS, EVERY = 35, 50     # how long, and after how many batches to look


def rss_mib() -> int:
    "MiB of this process's memory"
    import psutil
    return psutil.Process().memory_info().rss >> 20


def thin(values: list, most: int = 20) -> list:
    "At most about `most` of the values, at equal distances"
    return values[::max(1, len(values) // most)]


def main(seconds: float = SECONDS, device: str = "cuda", every: int = EVERY):
    from zztoolkit import vision as V
    chain = V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())
    bodies = [p.read_bytes() for p in photographs()]
    bodies = [b for b in bodies if len(b) < 600_000] or bodies
    gpu: list[int] = []
    rss: list[int] = []
    done, end = 0, time.time() + seconds
    with finding("flat", device=device) as found:
        while time.time() < end:
            batch = [bodies[(done + k) % len(bodies)] for k in range(1 + done % 4)]
            chain.batch(batch, device=device)
            done += 1
            if done % every: continue
            rss.append(rss_mib())
            if device == "cuda": gpu.append(used_mib())
        found |= {"batches": done, "gpu_mib": thin(gpu), "rss_mib": thin(rss)}


if __name__ == "__main__": main()
