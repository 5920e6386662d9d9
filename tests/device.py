"""Arrays that behave as CuPy's where they meet NumPy's: nothing mixes, nothing converts itself.

They stand for CuPy where there is no GPU, to find what a GPU would refuse; they say nothing of CuPy's own results.
"""
from __future__ import annotations

import operator, types

import numpy as np

# Of CuPy's reference (docs.cupy.dev/en/stable/reference): the functions that features may use
FUNCTIONS = ("arange", "asarray", "clip", "empty", "flatnonzero", "full", "isfinite", "isinf", "isnan", "log1p", "maximum", "minimum", "nan_to_num", "nonzero", "searchsorted", "unique", "where", "zeros")


class ndarray:
    "An array that lives elsewhere"
    __module__, __array_ufunc__ = "cupy", None

    def __init__(self, host: np.ndarray): self.host = host
    def __array__(self, *args, **kw): raise TypeError("Implicit conversion to a NumPy array is not allowed.")
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)      # such as __array_interface__, by which NumPy would look inside
        found = getattr(self.host, name)
        return (lambda *args, **kw: wrapped(found(*map(inner, args), **kw))) if callable(found) else wrapped(found)
    def get(self) -> np.ndarray: return self.host
    def __getitem__(self, key): return wrapped(self.host[inner(key)])
    def __setitem__(self, key, value): self.host[inner(key)] = inner(value)
    def __len__(self): return len(self.host)
    def __bool__(self): return bool(self.host)
    def __int__(self): return int(self.host)
    def __float__(self): return float(self.host)
    def __neg__(self): return wrapped(-self.host)
    def __invert__(self): return wrapped(~self.host)
    def __abs__(self): return wrapped(abs(self.host))

def inner(x):
    if isinstance(x, ndarray): return x.host
    if isinstance(x, np.ndarray): raise TypeError(f"Unsupported type {type(x)}")
    return tuple(map(inner, x)) if isinstance(x, tuple) else x

def wrapped(x):
    if isinstance(x, tuple): return tuple(map(wrapped, x))
    return ndarray(np.asarray(x)) if isinstance(x, (np.ndarray, np.generic)) else x

def _binary(name: str):
    f = getattr(operator, name)
    setattr(ndarray, f"__{name.strip('_')}__", lambda a, b: wrapped(f(a.host, inner(b))))
    setattr(ndarray, f"__r{name.strip('_')}__", lambda a, b: wrapped(f(inner(b), a.host)))

for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"): _binary(_name)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"): setattr(ndarray, f"__{_name}__", (lambda f: lambda a, b: wrapped(f(a.host, inner(b))))(getattr(operator, _name)))

def module() -> types.ModuleType:
    "A module in CuPy's place"
    m = types.ModuleType("cupy")
    for name in FUNCTIONS: setattr(m, name, (lambda f: lambda *args, **kw: wrapped(f(*map(inner, args), **kw)))(getattr(np, name)))
    m.asarray = lambda x, dtype=None: ndarray(np.asarray(x.host if isinstance(x, ndarray) else x, dtype))      # the way from the host
    m.ndarray, m.int64, m.uint64, m.float64 = ndarray, np.int64, np.uint64, np.float64
    return m
