"""Which module imports which, read from the sources: the ground of the tests on layers and cycles"""
from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A package imports only packages before it. What is not named here stands at the root, below them all.
ORDER = (
    "root", "vision", "features", "compile", "handler", "text", "pipeline", "archive", "serving", "llm", "gateway", "measure",
    "offline", "notebook", "deploy", "cli", "benchmarks",
)

# Imports against the order: where, of what, each inside a function. `zz ladder` is a command of the library.
LAZY_EXCEPTIONS = {("cli", "benchmarks"), ("root", "notebook")}


@dataclass(frozen=True)
class Import:
    "An import of one module by another, both named without `zztoolkit.`"
    by: str
    of: str
    line: int
    is_lazy: bool       # inside a function: it runs when the function is called

    @property
    def packages(self) -> tuple[str, str]:
        return package_of(self.by), package_of(self.of)

    def __str__(self) -> str: return f"{self.by}:{self.line} imports {self.of}"


def package_of(module: str) -> str:
    "Return the package of a module, `root` for one beside the packages"
    first = module.partition(".")[0]
    return first if first in ORDER else "root"


def imports_of(library: Path) -> list[Import]:
    "Read every import of the library's own modules, those for type checkers left out"
    found: list[Import] = []
    for file in sorted(library.rglob("*.py")):
        name = file.relative_to(library).with_suffix("").as_posix().replace("/", ".")
        if name != "_modidx": found += _imports_in(file, name, library)
    return found


def _imports_in(file: Path, name: str, library: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text())
    at_import = {id(n) for n in _run_at_import(tree)}
    for node in _without_type_checking(tree):
        if isinstance(node, ast.ImportFrom):
            for module in _modules_of(node, name, library):
                yield Import(name, module, node.lineno, id(node) not in at_import)


def _modules_of(node: ast.ImportFrom, name: str, library: Path) -> set[str]:
    "Return the modules of the library that a `from … import …` reads"
    above = name.split(".")[:-node.level] if node.level else []
    base = [*above, *(node.module or "").split(".")] if node.module else above
    if not node.level:
        if base[0] != "zztoolkit": return set()
        base = base[1:]
    modules = set()
    for alias in node.names:
        inner = [*base, alias.name]
        is_module = library.joinpath(*inner).is_dir() or library.joinpath(*inner).with_suffix(".py").exists()
        modules.add(".".join(inner if is_module else base))
    return modules - {""}


def _run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    "Yield the nodes outside of functions"
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): continue
        yield node
        yield from _run_at_import(node)


def _without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    "Yield the nodes outside of `if TYPE_CHECKING:`"
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING": continue
        yield node
        yield from _without_type_checking(node)


def against_order(imports: list[Import]) -> list[Import]:
    "Return the imports of a package that comes later"
    def is_wrong(i: Import) -> bool:
        by, of = i.packages
        if i.is_lazy and (by, of) in LAZY_EXCEPTIONS: return False
        return ORDER.index(by) < ORDER.index(of)
    return [i for i in imports if is_wrong(i)]


def cycle_in(imports: list[Import]) -> list[str]:
    "Return modules that import each other in a ring while they are imported; [] if there is no ring"
    needs: dict[str, set[str]] = {}
    for i in imports:
        if not i.is_lazy: needs.setdefault(i.by, set()).add(i.of)
    done: set[str] = set()

    def ring_from(module: str, way: tuple[str, ...]) -> list[str]:
        if module in way: return [*way[way.index(module):], module]
        if module in done: return []
        for other in sorted(needs.get(module, ())):
            if ring := ring_from(other, (*way, module)): return ring
        done.add(module)
        return []

    return next((ring for m in sorted(needs) if (ring := ring_from(m, ()))), [])
