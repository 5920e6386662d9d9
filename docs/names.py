"""Read the public names of the library from its source: signatures, docstrings, comments.

The names are those of each `__init__.pyi`. Nothing is imported, so that a check takes no time.
"""
from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

LIBRARY = "zztoolkit"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Parameter:
    "A parameter of a function, or a field of a dataclass"
    name: str           # with its stars
    annotation: str
    default: str
    comment: str


@dataclass(frozen=True)
class Member:
    "A method or property of a public class"
    name: str
    kind: str           # method, classmethod, staticmethod, property or attribute
    doc: str
    signature: str
    parameters: tuple[Parameter, ...]
    returns: Parameter | None


@dataclass(frozen=True)
class PublicName:
    "A name that a package exports, as its source describes it"
    package: str        # zztoolkit.vision
    name: str           # Chain
    module: str         # zztoolkit.vision.chain
    kind: str           # class, exception, function, module or data
    doc: str = ""
    signature: str = ""
    parameters: tuple[Parameter, ...] = ()
    returns: Parameter | None = None
    members: tuple[Member, ...] = field(default=(), repr=False)
    bases: tuple[str, ...] = ()

    @property
    def path(self) -> str: return f"{self.package}.{self.name}"


@dataclass(frozen=True)
class Source:
    "A module's text, its syntax tree and its comments by line"
    lines: tuple[str, ...]
    tree: ast.Module
    comments: dict[int, str]

    def text(self, node: ast.expr | None) -> str:
        "Return the source of an expression on one line"
        if node is None: return ""
        first, last = node.lineno - 1, node.end_lineno - 1
        lines = [line.encode() for line in self.lines[first:last + 1]]  # columns count bytes
        lines[-1] = lines[-1][:node.end_col_offset]
        lines[0] = lines[0][node.col_offset:]
        return " ".join(b"".join(lines).decode().split())

    def is_bare(self, line: int) -> bool:
        "Whether a line holds a comment and nothing else"
        return self.lines[line - 1].lstrip().startswith("#")


@cache
def read_source(path: Path) -> Source:
    "Read and parse a Python file"
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [t for t in tokens if t.type == tokenize.COMMENT]
    comments = {t.start[0]: t.string.lstrip("# ").strip() for t in found}
    return Source(tuple(text.splitlines(keepends=True)), ast.parse(text), comments)


def packages(root: Path) -> list[str]:
    "Return the packages with public names, the library itself first"
    stubs = (root / LIBRARY).rglob("__init__.pyi")
    return sorted(".".join(p.parent.relative_to(root).parts) for p in stubs)


def public_names(root: Path, package: str) -> Iterator[PublicName]:
    "Describe each name that a package's `__init__.pyi` exports"
    stub = read_source(_folder(root, package) / "__init__.pyi")
    for node in stub.tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.level: continue
        module = ".".join([package, *([node.module] if node.module else [])])
        for alias in node.names:
            yield describe(root, package, module, alias.asname or alias.name)


def describe(root: Path, package: str, module: str, name: str) -> PublicName:
    "Describe a name of a module, which may import it from another one"
    if (_folder(root, module) / name).is_dir():
        doc = package_doc(root, f"{module}.{name}")
        return PublicName(package, name, f"{module}.{name}", "module", doc)
    module, node, source = _definition(root, module, name)
    if isinstance(node, ast.ClassDef): return _describe_class(package, module, node, source)
    if isinstance(node, FUNCTIONS):
        return PublicName(
            package, name, module, "function", _doc(node), _signature(node, source),
            _parameters(node, source), _returns(node, source),
        )
    return PublicName(package, name, module, "data")


def package_doc(root: Path, package: str) -> str:
    "Return the docstring of a package"
    return _doc(read_source(_folder(root, package) / "__init__.py").tree)


def _folder(root: Path, package: str) -> Path: return root.joinpath(*package.split("."))


def _doc(node) -> str: return inspect.cleandoc(ast.get_docstring(node, clean=False) or "")


def _definition(root: Path, module: str, name: str) -> tuple[str, ast.AST, Source]:
    "Find the statement that defines a name, following imports from the library"
    path = _folder(root, module)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists(): raise LookupError(f"an __init__.pyi names {module}, which does not exist")
    source = read_source(file)
    for node in source.tree.body:
        if name in _defined(node, source): return module, node, source
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ImportFrom): continue
        alias = next((a for a in node.names if (a.asname or a.name) == name), None)
        if alias: return _definition(root, _absolute(module, path.is_dir(), node), alias.name)
    raise LookupError(f"an __init__.pyi names {name} of {module}, which does not define it")


def _defined(node: ast.stmt, source: Source) -> list[str]:
    "Return the names that a statement defines"
    if isinstance(node, (ast.ClassDef, *FUNCTIONS)): return [node.name]
    if isinstance(node, ast.Assign): return [source.text(t) for t in node.targets]
    return [source.text(node.target)] if isinstance(node, ast.AnnAssign) else []


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    "Return the full name of the module that a statement imports from"
    if not node.level: return node.module or ""
    parts = module.split(".") if is_package else module.split(".")[:-1]
    base = parts[:len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _describe_class(package: str, module: str, node: ast.ClassDef, source: Source) -> PublicName:
    lineage = list(_lineage(node, source))
    methods = [n for c in lineage for n in c.body if isinstance(n, FUNCTIONS)]
    init = next((n for n in methods if n.name == "__init__"), None)
    dataclasses = [c for c in reversed(lineage) if _is_dataclass(c, source)]
    fields = tuple(f for c in dataclasses for f in _fields(c, source))
    parameters = _parameters(init, source, skip=1) if init else fields
    signature = _signature(init, source, skip=1) if init else _fields_signature(fields)
    bases = tuple(map(source.text, node.bases))
    kind = "exception" if any(b.endswith(("Error", "Exception")) for b in bases) else "class"
    return PublicName(
        package, node.name, module, kind, _doc(node), signature, parameters,
        members=tuple(_members(methods, source)), bases=bases,
    )


def _lineage(node: ast.ClassDef, source: Source) -> Iterator[ast.ClassDef]:
    "Yield a class, then the internal classes of its module that it derives from, the nearest first"
    yield node
    public = next((n.value for n in source.tree.body if "__all__" in _defined(n, source)), None)
    classes = {n.name: n for n in source.tree.body if isinstance(n, ast.ClassDef)}
    for name in map(source.text, node.bases):
        is_public = public is not None and name in ast.literal_eval(public)
        if name in classes and not is_public: yield from _lineage(classes[name], source)


def _is_dataclass(node: ast.ClassDef, source: Source) -> bool:
    return any("dataclass" in source.text(d) for d in node.decorator_list)


def _fields(node: ast.ClassDef, source: Source) -> Iterator[Parameter]:
    "Describe the public fields of a dataclass"
    for n in node.body:
        if not isinstance(n, ast.AnnAssign) or "ClassVar" in source.text(n.annotation): continue
        name = source.text(n.target)
        if name.startswith("_") or "init=False" in source.text(n.value): continue
        comment = _comment(n.end_lineno, source)
        yield Parameter(name, source.text(n.annotation), _default(n, source), comment)


def _default(node: ast.AnnAssign, source: Source) -> str:
    "Return the default of a field: its value, or what its factory makes"
    value = node.value
    is_field = isinstance(value, ast.Call) and source.text(value.func) == "field"
    if not is_field: return source.text(value)
    given = {k.arg: source.text(k.value) for k in value.keywords}
    if "default" in given: return given["default"]
    factory = given.get("default_factory", "")
    literals = {"": "", "dict": "{}", "list": "[]", "tuple": "()"}
    return literals.get(factory, f"{factory}()")


def _fields_signature(fields: tuple[Parameter, ...]) -> str:
    parts = [f"{p.name}={p.default}" if p.default else p.name for p in fields]
    return f"({', '.join(parts)})"


def _members(methods: list, source: Source) -> Iterator[Member]:
    "Describe the public methods and properties with a docstring; of those of one name, the first"
    seen = set()
    for n in methods:
        if n.name in seen or n.name.startswith("_") and n.name != "__call__": continue
        kind = _kind(n, source)
        if not _doc(n) or not kind: continue
        seen.add(n.name)
        skip = 0 if kind == "staticmethod" else 1
        signature = "" if kind == "property" else _signature(n, source, skip)
        parameters = () if kind == "property" else _parameters(n, source, skip)
        yield Member(n.name, kind, _doc(n), signature, parameters, _returns(n, source))


def _kind(node, source: Source) -> str:
    "Say what a method is; '' for one that is set or deleted, or a magic"
    words = [source.text(d).split("(")[0].rpartition(".")[2] for d in node.decorator_list]
    if {"setter", "deleter", "overload"} & set(words): return ""
    if {"property", "cached_property"} & set(words): return "property"
    return next((w for w in words if w in ("classmethod", "staticmethod")), "method")


def _arguments(node) -> Iterator[tuple[str, ast.arg, ast.expr | None]]:
    "Yield the parameters of a function in order, with their stars and defaults"
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
    yield from (("", arg, d) for arg, d in zip(positional, defaults))
    if a.vararg: yield "*", a.vararg, None
    yield from (("", arg, d) for arg, d in zip(a.kwonlyargs, a.kw_defaults))
    if a.kwarg: yield "**", a.kwarg, None


def _parameters(node, source: Source, skip: int = 0) -> tuple[Parameter, ...]:
    "Describe the parameters of a function, each with the comment at the end of its line"
    rows = list(_arguments(node))[skip:]
    ends = [(d or arg).end_lineno for _, arg, d in rows]
    after = [*ends[1:], node.body[0].lineno]
    comments = [_comment(e if e != a else None, source) for e, a in zip(ends, after)]
    return tuple(
        Parameter(stars + arg.arg, source.text(arg.annotation), source.text(d), comment)
        for (stars, arg, d), comment in zip(rows, comments) if not arg.arg.startswith("_")
    )


def _comment(line: int | None, source: Source) -> str:
    "Return the comment at the end of a line, and the lines of comment below it"
    if line is None or source.is_bare(line) or line not in source.comments: return ""
    parts = [source.comments[line]]
    while line + 1 in source.comments and source.is_bare(line + 1):
        line += 1
        parts.append(source.comments[line])
    return " ".join(parts)


def _signature(node, source: Source, skip: int = 0) -> str:
    "Return the parameters with their defaults and without their types"
    parts, a = [], node.args
    for stars, arg, default in list(_arguments(node))[skip:]:
        if not a.vararg and arg in a.kwonlyargs[:1]: parts.append("*")
        value = f"={source.text(default)}" if default is not None else ""
        parts.append(stars + arg.arg + value)
        if arg in a.posonlyargs[-1:]: parts.append("/")
    return "(" + ", ".join(parts) + ")"


def _returns(node, source: Source) -> Parameter | None:
    "Describe what a function returns"
    annotation = source.text(node.returns)
    if annotation in ("", "None"): return None
    line = node.returns.end_lineno
    comment = "" if line == node.body[0].lineno else _comment(line, source)
    return Parameter("", annotation.strip("'\""), "", comment)
