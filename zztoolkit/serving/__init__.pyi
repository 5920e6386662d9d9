from .server import make_server as make_server, Server as Server
from .torchserve.config import Settings as Settings
from .torchserve.server import LocalServer as LocalServer
from .torchserve.running import (
    RunningServer as RunningServer,
    running_servers as running_servers,
)
from .mosec.server import MosecServer as MosecServer
from .ray.server import RayServer as RayServer
from .endpoint import Endpoint as Endpoint
from .failures import PredictionError as PredictionError
from .rollout import deploy as deploy
from .reloading import reload as reload
