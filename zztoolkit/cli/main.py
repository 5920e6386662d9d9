"The `zz` application with all of its commands"
from .application import app as app
from . import archives, batches, deploying, local, measuring, services  # noqa: F401  each adds its commands
