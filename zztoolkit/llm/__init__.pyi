from .engine import generate as generate, Sampling as Sampling
from .openvino import OpenVINOEngine as OpenVINOEngine
from .server import LLMServer as LLMServer
