"""Check a built site: each local link points to something, no page loads a file from elsewhere."""
from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

# Elements that load what they point to; `a` leads there when a reader clicks
LOADED = {"link": "href"} | dict.fromkeys(("script", "img", "iframe", "source", "video"), "src")
_CSS_URL = re.compile(r"""(?:url\(\s*['"]?|@import\s+['"])(https?:|//)[^'")]*""")


class Html(HTMLParser):
    "The ids of a page, the files it loads and the links on it"

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[k] for k in ("id", "name") if given.get(k)}
        if tag == "a" and given.get("href"): self.links.append(given["href"])
        target = given.get(LOADED.get(tag, ""))
        if target and given.get("rel") not in ("canonical",): self.loaded.append(target)


def problems(site: Path) -> Iterator[str]:
    "Yield a line for each broken link and for each file that a page loads from another place"
    pages = {p: Html(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        for target in page.loaded:
            if _is_remote(target): yield f"{name} loads {target}"
        for target in [*page.links, *page.loaded]:
            if broken := _broken(target, path, pages): yield f"{name}: {broken} for the link {target}"
    for path in [*pages, *site.rglob("*.css")]:
        found = _CSS_URL.search(path.read_text(encoding="utf-8"))
        if found: yield f"{path.relative_to(site)} loads {found.group()}"


def _is_remote(target: str) -> bool: return bool(re.match(r"https?:|//", target))


def _broken(target: str, path: Path, pages: dict[Path, Html]) -> str:
    "Say what a local link lacks"
    if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.I): return ""
    name, _, anchor = target.partition("#")
    file = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
    if file.is_dir(): file /= "index.html"
    if not file.is_file(): return "no file"
    if anchor and file in pages and unquote(anchor) not in pages[file].ids: return "no anchor"
    return ""
