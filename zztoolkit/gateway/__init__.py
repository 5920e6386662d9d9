"Standard protocols in front of a server: Open Inference Protocol, TensorFlow Serving's REST"
from ..moved import attach_names

# The names are those of __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = attach_names(__name__, __file__)
