from .gateway import Gateway as Gateway
from .repository.policy import Scaling as Scaling
from .repository.repository import ModelRepository as ModelRepository
