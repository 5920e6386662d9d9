"""Names of modules before version 0.2. They work with a warning for one release.

An archive that was packed with an older version imports them too.
"""
import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Where the names of an old module are now
MOVED = {
    "agreement": "vision.agreement",
    "answers": "offline.results",
    "artifact": "compile.artifact compile.model_file compile.store compile.report",
    "bench": "measure.levels measure.bottleneck measure.results measure.plots measure.benchmark measure.compare",
    "bench_compile": "benchmarks.compile",
    "bench_frame": "benchmarks.features",
    "bench_tune": "benchmarks.tuning",
    "bench_vision": "benchmarks.vision",
    "columns": "features.columns features.keyed",
    "content": "compile.fingerprint",
    "core": "errors batch display system java diagnosis",
    "cpu": "vision.reading vision.progressive vision.cpu_kernels vision.cpu",
    "crew": "offline.worker offline.pool offline.model",
    "cuda": "vision.bridge vision.cuda_decode vision.cuda_kernels vision.cuda",
    "dashboard": "deploy.dashboard",
    "demo": "samples benchmarks.demo",
    "engines": "compile.backends.base compile.backends.graphs compile.backends.eager compile.backends.torchscript compile.backends.inductor compile.backends.onnx compile.backends.openvino compile.backends.tensorrt compile.backends.registry",
    "feature_ops": "features.ops.base features.ops.encode features.ops.scale features.ops.target features.ops.join features.ops.sequences features.ops.custom features.ops.registry",
    "frame": "features.table features.features features.saving features.crossover",
    "front": "deploy.proxy_config deploy.proxy",
    "gpu_frame": "features.cudf",
    "image": "deploy.wheel deploy.image",
    "jpeg": "vision.jpeg",
    "ladder": "benchmarks.ladder",
    "load": "measure.profile measure.connections measure.sender measure.load",
    "magics": "notebook.versions notebook.cells notebook.source notebook.maker notebook.serve notebook.options notebook.magics notebook.completion",
    "ops": "vision.ops vision.geometry vision.pixels vision.registry",
    "panel": "serving.torchserve.status notebook.panel.status notebook.panel.html notebook.panel.watch serving.reload notebook.panel.panel notebook.panel.widgets",
    "parity": "compile.parity",
    "peers": "benchmarks.peers",
    "run": "deploy.pod_config deploy.verifying deploy.server deploy.pod deploy.probes",
    "sampling": "measure.gpu measure.resources",
    "schema": "features.fields features.series features.schema",
    "serve": "serving.torchserve.config folders serving.torchserve.api serving.torchserve.process serving.torchserve.logs serving.torchserve.server serving.torchserve.metrics serving.rollout serving.endpoint serving.torchserve.running",
    "signing": "archive.signing",
    "sizing": "deploy.sizing",
    "soak": "benchmarks.soak",
    "sources": "offline.sources.base offline.sources.files offline.sources.tables offline.sources.csv offline.sources.opening",
    "tensors": "compile.signature",
    "tune": "measure.tuning.space measure.tuning.trials measure.tuning.search measure.tuning.runner measure.tuning.result measure.tuning.tuner",
}


class MovedModule(ModuleType):
    "A module by its old name; its attributes are looked up where they are now"

    def __getattr__(self, name: str):
        if name.startswith("__"): raise AttributeError(name)
        for new in MOVED[self.__name__.partition(".")[2]].split():
            found = vars(import_module(f"zztoolkit.{new}"))
            if name in found: return found[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class MovedFinder(MetaPathFinder, Loader):
    "Find modules by their old names"

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.partition(".")
        if package != "zztoolkit" or name not in MOVED: return None
        first = MOVED[name].split()[0]
        warnings.warn(
            f"{fullname} is now zztoolkit.{first}; the old name goes with the next release",
            DeprecationWarning, stacklevel=3,
        )
        return ModuleSpec(fullname, self)

    def create_module(self, spec): return MovedModule(spec.name)

    def exec_module(self, module): pass


def install():
    "Let the old names be imported"
    if not any(isinstance(f, MovedFinder) for f in sys.meta_path):
        sys.meta_path.append(MovedFinder())
