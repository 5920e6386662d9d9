"""Write the pages of the reference from the public names of each package."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from names import LIBRARY, Member, package_doc, packages, Parameter, public_names, PublicName

_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)


def all_names(root: Path) -> dict[str, list[PublicName]]:
    "Return the public names of each package"
    return {p: list(public_names(root, p)) for p in packages(root)}


def homes(names: dict[str, list[PublicName]]) -> dict[str, PublicName]:
    "Map the path of each public name to where it is documented: in its package, if it has one"
    by_place: dict[tuple[str, str], PublicName] = {}
    for package in sorted(names, key=lambda p: -p.count(".")):
        for n in names[package]: by_place.setdefault((n.module, n.name), n)
    return {n.path: by_place[n.module, n.name] for those in names.values() for n in those}


def undocumented(names: dict[str, list[PublicName]]) -> list[str]:
    "Return the public names without a docstring"
    return [n.path for those in names.values() for n in those if not n.doc and n.kind != "data"]


def page(root: Path, package: str, names: dict[str, list[PublicName]]) -> str:
    "Return the page of a package"
    where, own = homes(names), names[package]
    public = {n.name for those in names.values() for n in those}
    here = [n for n in own if where[n.path] is n and n.kind not in ("module", "data")]
    parts = [
        f"# {package}", package_doc(root, package),
        f"```{{py:module}} {package}\n```", summary(own, where),
        *(entry(n, public) for n in here),
    ]
    return "\n\n".join(parts) + "\n"


def summary(own: list[PublicName], where: dict[str, PublicName]) -> str:
    "Return a table of names with the first sentence of each"
    shown = [n for n in own if n.kind != "data"]
    rows = [f"| {_link(n, where)} | {escape(first_sentence(n.doc), True)} |" for n in shown]
    return table("zz-list", ["Name", ""], rows)


def _link(n: PublicName, where: dict[str, PublicName]) -> str:
    if n.kind == "module": return f"[`{n.name}`]({n.name}.md)"
    return f"[`{n.name}`](#{where[n.path].path})"


def entry(n: PublicName, public: set[str]) -> str:
    "Return the description of a class or function"
    bases = [f"`{b}`" for b in n.bases if b in public]
    extends = f":::{{div}} zz-types\nExtends {', '.join(bases)}.\n:::" if bases else ""
    body = [escape(n.doc), *types(n), extends, *(_member(n, m) for m in n.members)]
    return _directive(4, n.kind, n.name + n.signature, n.package, body)


def _member(n: PublicName, m: Member) -> str:
    options = [m.kind] if m.kind in ("classmethod", "staticmethod") else []
    kind = "property" if m.kind == "property" else "method"
    signature = f"{n.name}.{m.name}{m.signature}"
    return _directive(3, kind, signature, n.package, [escape(m.doc), *types(m)], options)


def _directive(
    depth: int, kind: str, signature: str, package: str, body: Iterable[str],
    options: Iterable[str] = (),
) -> str:
    "Return a directive of Sphinx's Python domain; a deeper one stands inside"
    fence = "`" * (depth + 3)
    head = [f"{fence}{{py:{kind}}} {signature}", f":module: {package}"]
    head += [f":{o}:" for o in options]
    return "\n".join([*head, "", "\n\n".join(filter(None, body)), fence])


def types(n: PublicName | Member) -> list[str]:
    "Return what a function takes and returns: a table if parameters have comments, else a line"
    commented = any(p.comment for p in n.parameters)
    takes = [_code(_declared(p), cell=False) for p in n.parameters if p.annotation]
    words = [] if commented or not takes else [f"Takes {', '.join(takes)}."]
    if n.returns:
        verb = "Type" if n.kind == "property" else "Returns"
        comment = f": {escape(n.returns.comment)}" if n.returns.comment else ""
        words.append(f"{verb} {_code(n.returns.annotation, cell=False)}{comment}.")
    line = f":::{{div}} zz-types\n{' '.join(words)}\n:::" if words else ""
    return [parameter_table(n.parameters) if commented else "", line]


def parameter_table(parameters: tuple[Parameter, ...]) -> str:
    "Return a table of parameters, each with its type, its default and its comment"
    rows = [f"| {_code(_declared(p))} | {escape(p.comment, True)} |" for p in parameters]
    return table("zz-parameters", ["Parameter", "Meaning"], rows)


def _declared(p: Parameter) -> str:
    "Return a parameter as it is declared: `name: type = default`"
    typed = f"{p.name}: {p.annotation}" if p.annotation else p.name
    if not p.default: return typed
    return f"{typed} = {p.default}" if p.annotation else f"{typed}={p.default}"


def table(name: str, heads: list[str], rows: Iterable[str]) -> str:
    "Return a Markdown table of a style's name"
    head = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([f":::{{div}} {name}", "", *head, *rows, "", ":::"])


def _code(text: str, cell: bool = True) -> str:
    "Return text as code, inside a table's cell or not"
    if not text: return ""
    fence = "``" if "`" in text else "`"
    return fence + (text.replace("|", r"\|") if cell else text) + fence


def first_sentence(text: str) -> str:
    "Return the first sentence of a docstring"
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[^.])[.:](?= [A-Z`])", paragraph)[0].rstrip(".")


def escape(text: str, cell: bool = False) -> str:
    "Return a docstring as Markdown: code stays, characters with a meaning are escaped"
    parts, at = [], 0
    for m in _CODE.finditer(text):
        code = m.group().replace("|", r"\|") if cell else m.group()
        parts += [_plain(text[at:m.start()], cell), code]
        at = m.end()
    return "".join([*parts, _plain(text[at:], cell)])


def _plain(text: str, cell: bool) -> str:
    text = re.sub(r"([<*\[\]{}\\_])", r"\\\1", text)
    return text.replace("|", r"\|") if cell else text


def lookup(names: dict[str, list[PublicName]]) -> dict[str, str]:
    "Map each way to write a public name, or a method of one, to the path of its description"
    where = homes(names)
    paths: dict[str, str] = {}
    short: dict[str, set[str]] = {}
    for path, home in where.items():
        if home.kind in ("module", "data"): continue
        for tail in ["", *(f".{m.name}" for m in home.members)]:
            target = home.path + tail
            for spelled in _spellings(path + tail): paths[spelled] = target
            short.setdefault(home.name + tail, set()).add(target)
    paths.update({s: min(targets) for s, targets in short.items() if len(targets) == 1})
    # A name of the library itself is meant before a package's
    top = [n for n in names[LIBRARY] if n.kind not in ("module", "data")]
    return paths | {n.name: where[n.path].path for n in top}


def _spellings(path: str) -> Iterator[str]:
    "Yield `zztoolkit.vision.Chain`, `vision.Chain` and `V.Chain`"
    yield path
    _, _, rest = path.partition(".")
    yield rest if "." in rest else path
    if rest.startswith("vision."): yield "V." + rest.removeprefix("vision.")
