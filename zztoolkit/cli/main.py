"The `zz` application with all of its commands"
from . import archives, batches, deploying, local, measuring, services
from .application import app

__all__ = ["app"]
# Each adds its commands on import.
COMMANDS = (archives, batches, deploying, local, measuring, services)
