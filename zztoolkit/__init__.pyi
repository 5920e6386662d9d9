from . import features as features, offline as offline, vision as vision
from .archive.packing import pack as pack
from .batch import Batch as Batch
from .compile.compiler import compile_model as compile_model
from .compile.artifact import Artifact as Artifact
from .compile.signature import Dim as Dim
from .compile.store import load_artifact as load_artifact
from .diagnosis import doctor as doctor
from .errors import RequestError as RequestError, ToolkitError as ToolkitError
from .handler.handler import Handler as Handler
from .measure.benchmarking import benchmark as benchmark
from .measure.tuning.tuner import tune as tune
from .notebook.serve import serve_model as serve_model
from .pipeline.graph import Stage as Stage
from .pipeline.pipeline import Pipeline as Pipeline
from .serving.endpoint import Endpoint as Endpoint
from .serving.torchserve.server import LocalServer as LocalServer

__version__: str

def load_ipython_extension(ipython: object) -> None: ...
