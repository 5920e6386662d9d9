"""Write the GPU's counters five times a second until the process is killed: counters.py FILE

`zztoolkit.measure.gpu` says what each of them counts.
"""
from __future__ import annotations

import json, sys, time
from typing import Any

import pynvml

from zztoolkit.measure.gpu import Gpm, read_gpu_counters

PERIOD = 0.2    # seconds


def start_gpm(gpu: Any) -> Gpm | None:
    "None on a card before Hopper, or where GPM is not allowed"
    try: return Gpm(gpu)
    except pynvml.NVMLError as e:
        print(f"no GPM counters: {e}", file=sys.stderr)
        return None


def read_sample(gpu: Any, gpm: Gpm | None) -> dict[str, float]:
    "The time of the wall clock and every counter that the card has"
    counters = read_gpu_counters(gpu, gpm)
    return {"call": 1, "at": round(time.time(), 2)} | {k: round(v, 1) for k, v in counters.items()}


def main():
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    gpm = start_gpm(gpu)
    with open(sys.argv[1], "a") as file:
        while True:
            time.sleep(PERIOD)
            file.write(json.dumps(read_sample(gpu, gpm)) + "\n")
            file.flush()


if __name__ == "__main__": main()
