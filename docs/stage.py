"""Write the sources of the site to a folder: notebooks, pages by hand, lists, the reference."""
from __future__ import annotations

import json
from configparser import ConfigParser
from importlib import import_module
from os.path import relpath
from pathlib import Path
from urllib.parse import unquote

from commands import commands_page, magics_page
from links import folder_of_links, is_local, replace_links
from lists import first_picture, package_lists, reference_list, story_list
from names import LIBRARY, package_doc
from notebooks import make_page
from places import find_pages, Page, read_json
from reference import all_names, lookup, page, undocumented

PICTURES = (".png", ".svg", ".jpg", ".gif")


class Site:
    "The sources of the site"

    def __init__(self, root: Path, out: Path):
        self.root, self.out = root, out
        self.pages = {p.path: p for p in find_pages(root)}
        self.problems: list[str] = []
        self.has_new_sidebar = False
        self.written: set[Path] = set()

    def write(self):
        "Write every page; raise `SystemExit` with all problems"
        for p in self.pages.values(): self._write_page(p)
        self._write_lists()
        self._write_reference()
        self._write_sidebar()
        for path in {p for p in self.out.rglob("*") if p.is_file()} - self.written: path.unlink()
        if self.problems: raise SystemExit("\n".join(self.problems))

    def _write(self, name: str, content: str | bytes) -> str:
        "Write a file if its content has changed, so that Sphinx reads again only what has"
        path = self.out / name
        self.written.add(path)
        new = content.encode() if isinstance(content, str) else content
        if not path.is_file() or path.read_bytes() != new:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(new)
        return name

    def _write_page(self, p: Page):
        if p.path.suffix == ".md":
            self._write(p.file, self._linked(p.path.read_text(encoding="utf-8"), p.path))
            return
        nb = make_page(read_json(p.path), p.path.relative_to(self.root).as_posix(), p.title)
        for c in nb["cells"]:
            if c["cell_type"] == "markdown": c["source"] = self._linked(c["source"], p.path)
        self._write(p.file, json.dumps(nb, indent=1))

    def _write_sidebar(self):
        "Write the titles of the pages in their order, and note whether they have changed"
        titles = json.dumps([(p.place, p.title) for p in self.pages.values()], indent=1)
        before = self.out / "sidebar.json"
        self.has_new_sidebar = not before.is_file() or before.read_text() != titles
        self._write("sidebar.json", titles)

    def _linked(self, text: str, path: Path) -> str:
        "Return Markdown whose links lead to the pages of the site"
        return replace_links(text, lambda target, label: self._target(target, path))

    def _target(self, target: str, path: Path) -> str | None:
        "Return the target of a link in the site; None for a file that has no page"
        if not is_local(target) or target.startswith("#"): return target
        name, mark, anchor = target.partition("#")
        file = (folder_of_links(path, self.root) / unquote(name)).resolve()
        here = self.pages[path].folder or "."
        if file in self.pages: return relpath(self.pages[file].file, here) + mark + anchor
        if not file.exists():
            self.problems.append(f"{path.relative_to(self.root)}: no file for the link {target}")
        if not file.is_file() or file.suffix not in PICTURES: return None
        return relpath(self._write(f"pictures/{file.name}", file.read_bytes()), here)

    def _write_lists(self):
        tutorials, howto, benchmarks = map(self._in, ("tutorials", "howto", "benchmarks"))
        pictures = self._pictures([*tutorials, *howto, *benchmarks])
        about = "Complete stories, each from data to a service."
        more = self._in("tutorials/handlers")
        text = story_list("Tutorials", about, tutorials, pictures, more, "Handlers")
        self._write("tutorials/index.md", text)
        about = "One task each, with the libraries that you use already."
        self._write("howto/index.md", story_list("How-to guides", about, howto, pictures))
        about = package_doc(self.root, f"{LIBRARY}.benchmarks")
        self._write("benchmarks/index.md", story_list("Benchmarks", about, benchmarks, pictures))
        explained = [p for p in self.pages.values() if p.place.startswith("explanations/")]
        lists = package_lists(self.root, explained)
        for place, text in lists.items(): self._write(f"{place}/index.md", text)

    def _in(self, folder: str) -> list[Page]:
        return [p for p in self.pages.values() if p.folder == folder]

    def _pictures(self, pages: list[Page]) -> dict[str, str]:
        "Write the first picture of each page; return their files by place"
        found = {p.place: picture for p in pages if (picture := first_picture(p))}
        name = "pictures/{}.png"
        return {at: self._write(name.format(at.replace("/", "-")), f) for at, f in found.items()}

    def _write_reference(self):
        names = all_names(self.root)
        self.problems += [f"no docstring: {path}" for path in undocumented(names)]
        app = setting(self.root, "console_scripts").partition("=")[2]
        self._write("reference/commands.md", commands_page(app))
        magics = import_module(f"{LIBRARY}.notebook.magics").ServeMagics
        self._write("reference/magics.md", magics_page(magics))
        places = {p: p.partition(".")[2].replace(".", "-") or LIBRARY for p in names}
        del places[f"{LIBRARY}.cli"]        # its one name is the application, described as commands
        for package, place in places.items():
            self._write(f"reference/{place}.md", page(self.root, package, names))
        self._write("reference/index.md", reference_list(self.root, places))
        self._write("names.json", json.dumps(lookup(names), indent=1))


def setting(root: Path, key: str) -> str:
    "Return a value of settings.ini"
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(root / "settings.ini")
    return config["DEFAULT"][key]
