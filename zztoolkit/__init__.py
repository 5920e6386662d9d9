"From a notebook cell to a served PyTorch model"
from . import moved

__version__ = "0.1.0"

# The names are those of __init__.pyi; each is imported when it is first used, so that `import zztoolkit` is quick.
__getattr__, __dir__, __all__ = moved.attach_names(__name__, __file__)
moved.install()


def load_ipython_extension(ipython):
    "Load the magics: `%load_ext zztoolkit`"
    from .notebook.magics import load
    load(ipython)
