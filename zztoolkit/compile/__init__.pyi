from .signature import Dim as Dim, TensorSpec as TensorSpec
from .parity import Tolerance as Tolerance
from .artifact import Artifact as Artifact, Session as Session
from .store import (
    load_artifact as load_artifact,
    cached_artifacts as cached_artifacts,
    clear_cache as clear_cache,
)
from .compiler import compile_model as compile_model
