"""Turn a notebook of the repository into a page: no directives, checks and imports folded."""
from __future__ import annotations

import ast
import re
from typing import Any

_DIRECTIVE = re.compile(r"^#\|\s*(\S+)(.*)\n?", re.MULTILINE)
_KEPT = ("handler",)        # what a reader writes in a notebook of their own
_HIDDEN = ("hide", "default_exp")
_CHECK = re.compile(r"^(assert\b|test_\w+\()")


def make_page(nb: dict[str, Any], source: str, title: str) -> dict[str, Any]:
    "Return the notebook to show for one of the repository, whose path is `source`, under a title"
    module = module_of(nb)
    shown = [c | {"source": "".join(c["source"])} for c in nb["cells"] if _is_shown(c)]
    cells = [_code_cell(c) if c["cell_type"] == "code" else c for c in shown]
    if cells and (note := _note(module, source)): cells[0]["source"] += f"\n\n{note}"
    if title: cells[0]["source"] = re.sub(r"^# .+", f"# {title}", cells[0]["source"], count=1)
    return {
        "cells": cells, "nbformat": 4, "nbformat_minor": 5,
        "metadata": {"language_info": {"name": "python", "pygments_lexer": "zz-notebook"}},
    }


def module_of(nb: dict[str, Any]) -> str:
    "Return the module that a notebook exports to, without the library's name; '' if it has none"
    for c in nb["cells"]:
        if found := dict(directives(c)).get("default_exp"): return found.strip()
    return ""


def directives(cell: dict[str, Any]) -> list[tuple[str, str]]:
    "Return the nbdev directives of a code cell, each with its argument"
    if cell["cell_type"] != "code": return []
    return _DIRECTIVE.findall("".join(cell["source"]))


def title_and_description(nb: dict[str, Any]) -> tuple[str, str]:
    "Return the heading of a notebook and the quoted line below it"
    first = "".join(next(c["source"] for c in nb["cells"] if c["cell_type"] == "markdown"))
    title = re.search(r"^# (.+)", first, re.MULTILINE)
    quoted = re.findall(r"^> ?(.*)", first, re.MULTILINE)
    return title.group(1) if title else "", " ".join(quoted)


def _note(module: str, source: str) -> str:
    "Return a line that names the module and the notebook of a page"
    if not module: return ""
    return f":::{{div}} zz-source\nModule `zztoolkit.{module}`, made from `{source}`\n:::"


def _is_shown(cell: dict[str, Any]) -> bool:
    if cell["cell_type"] == "raw" or not "".join(cell["source"]).strip(): return False
    return not {name for name, _ in directives(cell)} & set(_HIDDEN)


def _code_cell(cell: dict[str, Any]) -> dict[str, Any]:
    "Return a code cell without directives, with tags for what they said"
    words = {name for name, _ in directives(cell)}
    source = "".join(cell["source"])
    code = _DIRECTIVE.sub(lambda m: m.group() if m.group(1) in _KEPT else "", source).strip("\n")
    tags = ["zz-export"] if words & {"export", "exporti", "exports"} else []
    metadata: dict[str, Any] = {"tags": tags}
    if fold := _fold(code, cell): metadata = _folded(fold, tags)
    return cell | {"source": code, "metadata": metadata}


def _folded(label: str, tags: list[str]) -> dict[str, Any]:
    prompts = {"code_prompt_show": label, "code_prompt_hide": label}
    return {"tags": [*tags, "hide-input"], "mystnb": prompts}


def _fold(code: str, cell: dict[str, Any]) -> str:
    "Return the label under which a cell is folded, '' for one that is shown"
    if code.lstrip().startswith("%"): return ""
    try: body = ast.parse(code).body
    except SyntaxError: return ""
    lines = len(code.splitlines())
    if all(_is_import(n) for n in body): return "Imports" if lines > 3 else ""
    if cell.get("outputs") or directives(cell): return ""
    if cell.get("id") == "imports-test" and lines > 3: return "Setup of the examples"
    checks = sum(bool(_CHECK.match(l.strip())) for l in code.splitlines())
    return "Checks" if checks and lines > 6 else ""


def _is_import(node: ast.stmt) -> bool:
    "Whether a statement imports, for types only or not"
    if isinstance(node, ast.If): return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, (ast.Import, ast.ImportFrom))
