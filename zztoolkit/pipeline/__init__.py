"Several models in one service: stages, parts that fan out and in, and one handler of all"
from ..moved import attach_names

# The names are those of __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = attach_names(__name__, __file__)
