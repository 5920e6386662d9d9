"Image preprocessing written once: operations are plain values, a `Chain` plans them for the CPU or for CUDA"
import lazy_loader

# The names are those of __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
