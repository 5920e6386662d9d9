"Text generation: engines behind one interface, a server that speaks OpenAI's API, and a chat in the notebook"
from ..moved import attach_names

# The names are those of __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = attach_names(__name__, __file__)
