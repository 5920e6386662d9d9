"From a notebook cell to a served PyTorch model"
__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .artifact import Artifact as Artifact, load_artifact as load_artifact
    from .compile import compile_model as compile_model
    from .core import doctor as doctor
    from .handler import Handler as Handler
    from .magics import serve_model as serve_model
    from .serve import Endpoint as Endpoint, LocalServer as LocalServer
    from .tensors import Dim as Dim

# Names of the modules below, imported when they are first used: `import zztoolkit` must stay light.
_LAZY = dict(doctor="core", compile_model="compile", load_artifact="artifact", Artifact="artifact", Dim="tensors", Handler="handler",
             LocalServer="serve", Endpoint="serve", serve_model="magics")
__all__ = [*_LAZY]


def __getattr__(name: str):
    if name not in _LAZY: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__(): return sorted([*globals(), *_LAZY])


def load_ipython_extension(ipython):
    "`%load_ext zztoolkit`"
    from .magics import load
    load(ipython)
