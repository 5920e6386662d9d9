"An archive whose workers take 40 MB, and copies of it as other models."
from __future__ import annotations

import os
from pathlib import Path
from zipfile import ZipFile

from zztoolkit.archive.store import write_sidecar
from zztoolkit.system import sha256

SCALE = """
import time
import numpy as np
from zztoolkit import Handler
MORE = 3 << 20      # numbers, in 24 MiB: a worker's first requests take 2 MB
class Scale(Handler):
    def initialize(self, context):
        super().initialize(context)
        self.name = context.manifest["model"]["modelName"]
        if self.name == "broken": raise ImportError("no module named nowhere")
        self.weights = [np.ones((12 if self.name == "giant" else 1) * MORE)]
    def preprocess(self, xs): return list(xs)
    def inference(self, xs):
        if self.name == "slow": time.sleep(0.05)
        if self.name == "hungry": self.weights.append(np.ones(MORE))
        return xs
    def postprocess(self, xs): return [{"model": self.name} for _ in xs]
"""

def copy(archive: Path, folder: Path, name: str, **config):
    "Put the archive into a folder as another model"
    with ZipFile(archive) as given, ZipFile(folder / f"{name}.part", "w") as new:
        for member in given.namelist():
            data = given.read(member)
            if member == "MAR-INF/MANIFEST.json": data = data.replace(b'"modelName": "scale"', f'"modelName": "{name}"'.encode())
            if member == "model-config.yaml": data += "".join(f"{k}: {v}\n" for k, v in config.items()).encode()
            new.writestr(member, data)
    write_sidecar(folder / f"{name}.mar", sha256(folder / f"{name}.part"))
    os.replace(folder / f"{name}.part", folder / f"{name}.mar")
