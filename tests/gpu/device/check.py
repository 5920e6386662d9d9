"""Check the parts without a GPU: check.py PART...

Each must compile, import what is here, and take from the project only names that it has. What is
not installed is listed.
"""
from __future__ import annotations

import ast, importlib, importlib.util, sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
OURS = {"zztoolkit", "test_gpu", "test_features", *(p.stem for p in HERE.glob("*.py"))}


@dataclass(frozen=True)
class Verdict:
    "What is wrong with a module, and what it lacks here"
    name: str
    errors: tuple[str, ...]
    absent: tuple[str, ...]     # packages


def is_ours(module: str) -> bool: return module.partition(".")[0] in OURS


def is_here(module: str) -> bool:
    "Can this module be imported, as far as its folders say?"
    try: return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError): return False


def imports(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    "Yield module, name in it ('' for the module itself) and local name of what is imported"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names: yield a.name, "", a.asname or a.name
        if isinstance(node, ast.ImportFrom) and node.module:
            for a in node.names: yield node.module, a.name, a.asname or a.name


def resolve(module: str, name: str) -> object:
    "A name of a module, which may be a module below it. Raises ImportError or AttributeError"
    owner = importlib.import_module(module)
    if not name: return owner
    if hasattr(owner, name): return getattr(owner, name)
    if is_here(f"{module}.{name}"): return importlib.import_module(f"{module}.{name}")
    raise AttributeError(f"{module} has no {name}")


def unknown_names(tree: ast.Module) -> Iterator[str]:
    "Yield each name of the project that a module uses and the project lacks"
    modules: dict[str, ModuleType] = {}
    for module, name, local in imports(tree):
        if not is_ours(module): continue
        try: thing = resolve(module, name)
        except AttributeError as e: yield str(e)
        except ModuleNotFoundError as e:
            if is_ours(e.name or ""): yield str(e)      # another package's absence is no error
        else:
            if isinstance(thing, ModuleType): modules[local] = thing
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name): continue
        owner = modules.get(node.value.id)
        if owner is None or hasattr(owner, node.attr): continue
        yield f"line {node.lineno}: {owner.__name__} has no {node.attr}"


def absent_packages(tree: ast.Module) -> list[str]:
    "The packages that a module imports and this Python lacks"
    wanted = {module for module, _, _ in imports(tree)}
    wanted |= {f"{module}.{name}" for module, name, _ in imports(tree) if module == "nvidia"}
    return sorted(m for m in wanted if not is_ours(m) and not is_here(m))


def check_module(path: Path) -> Verdict:
    "Compile a module, import it if what it needs at once is here, and look up its names"
    tree, errors = ast.parse(path.read_text()), list[str]()
    try: importlib.import_module(path.stem)
    except ModuleNotFoundError as e:
        if is_ours(e.name or ""): errors.append(str(e))
    except Exception as e: errors.append(f"{type(e).__name__}: {e}")
    if not errors: errors += unknown_names(tree)
    return Verdict(path.stem, tuple(errors), tuple(absent_packages(tree)))


def main(names: list[str]) -> int:
    "Print a line for each module. Return 1 if one of them cannot work"
    verdicts = [check_module(HERE / f"{name}.py") for name in names]
    for v in verdicts:
        lacks = f"not installed here: {', '.join(v.absent)}" if v.absent else ""
        print(f"{v.name:<10} {'; '.join(v.errors) or 'ok'}  {lacks}".rstrip())
    return int(any(v.errors for v in verdicts))


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
