"""Simulated arrays, columns and tensors that reject what those on a GPU reject.

They replace CuPy, cuDF, RMM and torch on CUDA, and say nothing about the results of these.
"""
from __future__ import annotations

import operator, types
from collections import Counter
from importlib.machinery import ModuleSpec

import numpy as np, pandas as pd, pyarrow as pa, torch

# Of CuPy's reference (docs.cupy.dev/en/stable/reference): the functions that features may use
FUNCTIONS = (
    "arange", "asarray", "clip", "empty", "flatnonzero", "floor", "full", "isfinite", "isinf",
    "isnan", "log1p", "maximum", "minimum", "nan_to_num", "nonzero", "searchsorted", "unique",
    "where", "zeros")


class ndarray:
    "An array that lives elsewhere: nothing mixes with NumPy's, nothing converts itself"
    __module__, __array_ufunc__ = "cupy", None

    def __init__(self, host: np.ndarray): self.host = host
    def __array__(self, *args, **kw): raise TypeError("Implicit conversion to a NumPy array is not allowed.")
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)      # such as __array_interface__, by which NumPy would look inside
        value = getattr(self.host, name)
        return on_arrays(value) if callable(value) else wrapped(value)
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

def on_arrays(f):
    "Return a function of NumPy's arrays as one of these"
    return lambda *args, **kw: wrapped(f(*map(inner, args), **kw))

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

def _comparison(name: str):
    f = getattr(operator, name)
    setattr(ndarray, f"__{name}__", lambda a, b: wrapped(f(a.host, inner(b))))

ARITHMETIC = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift",
    "rshift")
for _name in ARITHMETIC: _binary(_name)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"): _comparison(_name)

def cupy() -> types.ModuleType:
    "Return a module to replace CuPy"
    def asarray(x, dtype=None):       # the way from the host
        return ndarray(np.asarray(x.host if isinstance(x, ndarray) else x, dtype))
    m = types.ModuleType("cupy")
    for name in FUNCTIONS: setattr(m, name, on_arrays(getattr(np, name)))
    m.asarray = asarray
    m.ndarray, m.int64, m.uint64, m.float64 = ndarray, np.int64, np.uint64, np.float64
    return m


class Series:
    "A cuDF column: beside its values, of whatever dtype, which of them are missing"
    __module__ = "cudf"

    def __init__(self, host: pd.Series, values: np.ndarray | None = None):
        self.host, self.missing = host, host.isna().to_numpy()
        self.values = plain_values(host) if values is None else values
        self.dtype, self.iloc = self.values.dtype, Rows(host)

    def __len__(self): return len(self.host)
    def isnull(self): return ndarray(self.missing)
    def to_pandas(self): return self.host
    def to_arrow(self): return pa.Array.from_pandas(self.host)
    def astype(self, dtype: str): return Series(self.host, self.values.astype(dtype))

    def factorize(self):
        codes, values = self.host.factorize()
        return ndarray(codes), Series(values.to_series())

    def to_cupy(self, dtype=None, na_value=None):
        "cuDF fills in the column's dtype, then converts: `NumericalColumn._validate_fillna_value`"
        values = self.values
        if self.missing.any():
            if isinstance(na_value, float) and values.dtype.kind != "f":
                raise TypeError(f"Cannot safely cast non-equivalent float to {values.dtype}")
            values = np.where(self.missing, na_value, values)
        return ndarray(values.astype(dtype or values.dtype))

def plain_values(host: pd.Series) -> np.ndarray:
    "The values in their own dtype; where one is missing, anything"
    plain = getattr(host.dtype, "numpy_dtype", None)       # of pandas' Int64, boolean ...
    return host.to_numpy() if plain is None else host.to_numpy(plain, na_value=plain.type(0))

class Rows:
    "Rows of a column by position"
    def __init__(self, host: pd.Series): self.host = host
    def __getitem__(self, rows): return Series(self.host.iloc[rows])

class DataFrame:
    "A cuDF frame"
    __module__ = "cudf"
    def __init__(self, host: pd.DataFrame): self.host, self.columns = host, host.columns
    def __len__(self): return len(self.host)
    def __getitem__(self, column): return Series(self.host[column])

def cudf() -> types.ModuleType:
    "Return a module to replace cuDF"
    m = types.ModuleType("cudf")
    m.__spec__ = ModuleSpec("cudf", None)
    m.from_pandas = DataFrame
    return m

def rmm() -> types.ModuleType:
    "Return a module to replace RMM; `made` counts memory resources"
    m = types.ModuleType("rmm")
    m.made = Counter()
    class Resource:
        def __init__(self): m.made[type(self).__name__] += 1
    names = ("CudaMemoryResource", "CudaAsyncMemoryResource", "PoolMemoryResource")
    m.mr = types.SimpleNamespace(**{name: type(name, (Resource,), {}) for name in names})
    m.mr.current = m.mr.CudaMemoryResource()
    m.mr.get_current_device_resource = lambda: m.mr.current
    m.mr.set_current_device_resource = lambda resource: setattr(m.mr, "current", resource)
    return m


class Tensor(torch.Tensor):
    "A tensor whose every way to the host is counted"
    WAYS = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.numpy)
    transfers = 0

    @classmethod
    def __torch_function__(cls, f, kinds, args=(), kwargs=None):
        if f not in cls.WAYS: return super().__torch_function__(f, kinds, args, kwargs)
        Tensor.transfers += 1
        return f(args[0].as_subclass(torch.Tensor), *args[1:], **kwargs or {})
