"""Every public name of zztoolkit, a line each: `python tests/support/api.py > tests/api.txt`

A package's public names are those of its `__init__.pyi`; those of a module beside the packages are its `__all__`.
"""
import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "zztoolkit"


def stub_names(stub: Path) -> Iterator[str]:
    "Yield the names that an `__init__.pyi` imports or defines"
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name


def listed_names(module: Path) -> list[str]:
    "Return a module's `__all__`"
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def surface() -> dict[str, list[str]]:
    "Return the public names of each package, and of each module beside the packages"
    places = {"zztoolkit": sorted(stub_names(LIBRARY / "__init__.pyi"))}
    for stub in sorted(LIBRARY.glob("*/__init__.pyi")):
        places[f"zztoolkit.{stub.parent.name}"] = sorted(stub_names(stub))
    for module in sorted(LIBRARY.glob("*.py")):
        names = listed_names(module) if not module.stem.startswith("_") else []
        if names: places[f"zztoolkit.{module.stem}"] = sorted(names)
    return places


def lines() -> list[str]:
    "Return every public name with its package, in order"
    return sorted(f"{place}.{name}" for place, names in surface().items() for name in names)


def value_of(line: str) -> object:
    "Import what a line names"
    place, _, name = line.rpartition(".")
    return getattr(import_module(place), name)


if __name__ == "__main__":
    print("\n".join(lines()))
