"""Write the reference of the `zz` commands and of the magics from the parsers themselves."""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from reference import escape, table


def commands_page(entry_point: str) -> str:
    "Return the page of the commands; `entry_point` is `module:name` of the typer application"
    from typer.main import get_command
    module, _, name = entry_point.partition(":")
    root = get_command(getattr(import_module(module), name))
    parts = ["# Commands", escape(root.help or ""), "Each command prints this text with `--help`."]
    parts += [_command(path, c) for path, c in _commands(root, ["zz"])]
    return "\n\n".join(parts) + "\n"


def _commands(group: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
    "Yield each command below a group, with its words"
    for name, c in sorted(group.commands.items()):
        yield [*path, name], c
        if hasattr(c, "commands"): yield from _commands(c, [*path, name])


def _command(path: list[str], command: Any) -> str:
    words = " ".join(path)
    rows = [_row(p) for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    options = table("zz-options", ["", ""], rows) if rows else ""
    usage = f"```text\n{words} {_usage(command)}\n```"
    heading = "#" * len(path) + f" {words}"
    return "\n\n".join(filter(None, [heading, escape(command.help or ""), usage, options]))


def _usage(command: Any) -> str:
    arguments = [_argument(p) for p in command.params if p.param_type_name == "argument"]
    options = ["[OPTIONS]"] if len(arguments) < len(command.params) else []
    follow = ["COMMAND"] if hasattr(command, "commands") else []
    return " ".join([*options, *arguments, *follow])


def _argument(p: Any) -> str:
    word = (p.metavar or p.name).upper().strip("[]")
    word += "..." if p.nargs == -1 else ""
    return word if p.required else f"[{word}]"


def _row(p: Any) -> str:
    "Return the row of an argument or option"
    names = [_argument(p)] if p.param_type_name == "argument" else [*p.opts, *p.secondary_opts]
    is_told = p.default not in (None, (), [], "", False) and not callable(p.default)
    ending = f" (default `{p.default}`)" if is_told else ""
    required = " (required)" if p.param_type_name == "option" and p.required else ""
    words = ", ".join(f"`{n}`" for n in names)
    return f"| {words} | {escape(p.help or '', True)}{required}{ending} |"


def magics_page(magics: type) -> str:
    "Return the page of the magics of a class"
    parts = ["# Magics", "Available in a notebook after `%load_ext zztoolkit`."]
    for kind, sign in (("cell", "%%"), ("line", "%")):
        for name, method in sorted(magics.magics[kind].items()):
            parts.append(_magic(sign + name, getattr(magics, str(method))))
    return "\n\n".join(parts) + "\n"


def _magic(name: str, method: Any) -> str:
    parser = getattr(method, "parser", None)
    doc = parser.description if parser else method.__doc__
    actions = [a for a in parser._actions if a.help != argparse.SUPPRESS] if parser else []
    actions = [a for a in actions if not isinstance(a, argparse._HelpAction)]
    rows = [f"| {_words(a)} | {escape(a.help or '', True)} |" for a in actions]
    options = table("zz-options", ["", ""], rows) if rows else ""
    return "\n\n".join(filter(None, [f"## `{name}`", escape((doc or "").strip()), options]))


def _words(a: argparse.Action) -> str:
    if a.option_strings: return ", ".join(f"`{o}`" for o in a.option_strings)
    return f"`{a.dest.upper()}`" if a.nargs != "?" else f"`[{a.dest.upper()}]`"
