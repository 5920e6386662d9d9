"""Give each notebook and Markdown file of the repository its place in the site."""
from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from notebooks import title_and_description

# Notebooks with a place of their own; each other one goes where its folder goes
PLACES = {"nbs/index": "getting_started", "nbs/howto/from_torchserve": "from_torchserve"}
FOLDERS = {
    "tutorials": "tutorials",
    "handlers": "tutorials/handlers",
    "howto": "howto",
    "benchmarks": "benchmarks",
}
PROJECT = ("CONTRIBUTING", "CHANGELOG")
HAND = "docs/pages"     # pages written by hand


@dataclass(frozen=True)
class Page:
    "A notebook or a Markdown file of the repository, and its place in the site"
    path: Path
    place: str          # tutorials/quality_inspection
    title: str
    description: str

    @property
    def file(self) -> str: return self.place + self.path.suffix

    @property
    def folder(self) -> str: return self.place.rpartition("/")[0]


def find_pages(root: Path) -> list[Page]:
    "Return the pages of the site in their order; raise `SystemExit` if two have the same place"
    pages = [*_notebooks(root), *_project(root), *_hand_written(root)]
    twice = [place for place, n in Counter(p.place for p in pages).items() if n > 1]
    if twice: raise SystemExit(f"two notebooks for one page: {', '.join(sorted(twice))}")
    return pages


def _notebooks(root: Path) -> Iterator[Page]:
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts: continue
        name = path.relative_to(root).with_suffix("").as_posix()
        place = PLACES.get(name) or place_of(name)
        title, description = title_and_description(read_json(path))
        yield Page(path, place, shown_title(place, title), description)


def _project(root: Path) -> Iterator[Page]:
    for name in PROJECT:
        path = root / f"{name}.md"
        yield Page(path, f"project/{name.lower()}", name.title(), "")


def _hand_written(root: Path) -> Iterator[Page]:
    for path in sorted((root / HAND).glob("*.md")): yield Page(path, path.stem, path.stem, "")


def place_of(name: str) -> str:
    "Return the place of a notebook under nbs/, without the numbers that order notebooks"
    _, *folders, stem = name.split("/")
    stem = re.sub(r"^\d+[a-z]*_", "", stem)
    if folders and folders[0] in FOLDERS: folders[0] = FOLDERS[folders[0]]
    else: folders.insert(0, "explanations")
    return "/".join([*folders, stem])


def shown_title(place: str, title: str) -> str:
    "Return the title of a page: in words, but a module's by its name"
    if place == "getting_started": return "Getting started"
    if place.startswith("explanations") or not re.fullmatch(r"[a-z0-9_]+", title): return title
    words = title.replace("_", " ").capitalize()
    return words.replace("Gpu", "GPU").replace("Imagenet", "ImageNet")


def read_json(path: Path) -> dict: return json.loads(path.read_text(encoding="utf-8"))
