"""Write the lists of pages: cards for stories, tables for modules, and the order of the sidebar."""
from __future__ import annotations

import base64
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path

from names import LIBRARY, package_doc
from places import Page, read_json
from reference import table

ORDER = (
    "vision", "features", "compile", "handler", "text", "archive", "serving", "offline", "measure",
    "notebook", "deploy", "cli",
)


def in_order(names: Sequence[str]) -> list[str]:
    "Return packages in the order in which they are shown; those without a place come last"
    return sorted(names, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))


def toctree(names: Sequence[str]) -> str:
    "Return the part of the sidebar below a page"
    return "\n".join(["```{toctree}", ":hidden:", "", *names, "```", ""])


def page_table(pages: Sequence[Page], place: str) -> str:
    "Return a table of pages and their descriptions, as seen from a place"
    rows = [_row(p.title, relpath(p.file, place), p.description) for p in pages]
    return table("zz-list", ["", ""], rows)


def _row(title: str, target: str, about: str) -> str:
    about = about.replace("|", r"\|")
    return f"| [{title}]({target}) | {about} |"


def cards(pages: Sequence[Page], pictures: dict[str, str]) -> str:
    "Return a card for each page, with its picture if it has one"
    inside = [_card(p, pictures.get(p.place, "")) for p in pages]
    return "\n\n".join(["::::{grid} 1 1 2 2\n:gutter: 3", *inside, "::::"])


def _card(p: Page, picture: str) -> str:
    options = [f":link: /{p.place}", ":link-type: doc"]
    if picture: options.append(f":img-top: /{picture}")
    return "\n".join([f":::{{grid-item-card}} {p.title}", *options, "", p.description, ":::"])


def first_picture(page: Page) -> bytes | None:
    "Return the first PNG among the outputs of a notebook"
    outputs = [o for c in read_json(page.path)["cells"] for o in c.get("outputs", [])]
    found = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    return base64.b64decode("".join(found[0])) if found else None


def story_list(
    title: str, about: str, pages: Sequence[Page], pictures: dict[str, str],
    more: Sequence[Page] = (), heading: str = "",
) -> str:
    "Return the list of tutorials or how-to guides: cards, then a table of more of them"
    place = pages[0].folder
    parts = [f"# {title}", about, cards(pages, pictures)]
    if more: parts += [f"## {heading}", page_table(more, place)]
    return "\n\n".join([*parts, toctree([relpath(p.place, place) for p in [*pages, *more]])])


def package_lists(root: Path, pages: Sequence[Page], place: str = "explanations") -> dict[str, str]:
    "Return the list of a package's modules, and those of the packages inside it, by place"
    own = [p for p in pages if p.folder == place]
    below = in_order({_first(p.folder, place) for p in pages if p.folder.startswith(f"{place}/")})
    rows = [_row(n, f"{n}/index.md", about_package(root, f"{place}/{n}")) for n in below]
    inside = table("zz-list", ["", ""], rows) if rows else ""
    names = [*(relpath(p.place, place) for p in own), *(f"{n}/index" for n in below)]
    modules = page_table(own, place)
    parts = [f"# {Path(place).name}", about_package(root, place), modules, inside]
    if place == "explanations": parts = _explanations(modules, inside)
    lists = {place: "\n\n".join([*filter(None, parts), toctree(names)])}
    for n in below: lists |= package_lists(root, pages, f"{place}/{n}")
    return lists


def _first(folder: str, place: str) -> str:
    "Return the part of a folder that follows a place"
    return folder.removeprefix(f"{place}/").split("/")[0]


def _explanations(modules: str, packages: str) -> list[str]:
    return [
        "# Explanations",
        "Each module of the library is a notebook: its idea, its code and what the code does.",
        "## What every package uses", modules, "## Packages", packages,
    ]


def about_package(root: Path, place: str) -> str:
    "Return the docstring of the package whose modules are explained at a place"
    return package_doc(root, ".".join([LIBRARY, *place.split("/")[1:]]))


def reference_list(root: Path, places: dict[str, str]) -> str:
    "Return the list of the reference's pages; `places` are those of the packages"
    inside = in_order([p.partition(".")[2] for p in places if p != LIBRARY])
    order = [LIBRARY, *(f"{LIBRARY}.{n}" for n in inside)]
    rows = [_row(f"`{p}`", f"{places[p]}.md", package_doc(root, p)) for p in order]
    rows.append(_row("Commands", "commands.md", "Every command of `zz` and its options"))
    rows.append(_row("Magics", "magics.md", "`%%serve` and the other magics of a notebook"))
    return "\n\n".join([
        "# Reference",
        "The public names of each package. A name that is not here is internal and may change.",
        table("zz-list", ["", ""], rows),
        toctree([*(places[p] for p in order), "commands", "magics"]),
    ])
