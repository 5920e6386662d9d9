"""Find the links of Markdown text and the headings that they may point to."""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1|(`+)(?!`).+?(?<!`)\2(?!`)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\])\(\s*<?((?:[^\s()<>]|\([^\s()]*\))+)>?(\s+\"[^\"]*\")?\s*\)")


def links(text: str) -> Iterator[str]:
    "Yield the target of each link and picture of a Markdown text, code left out"
    blank = _CODE.sub(lambda m: re.sub(r"[^\n]", "x", m.group()), text)
    yield from (m.group(1) for m in _LINK.finditer(blank))


def replace_links(text: str, replace: Callable[[str, str], str | None]) -> str:
    """Give each link of a Markdown text the target that `replace(target, label)` returns.

    A link whose new target is None becomes its label.
    """
    blank = _CODE.sub(lambda m: re.sub(r"[^\n]", "x", m.group()), text)
    for m in reversed(list(_LINK.finditer(blank))):
        start = _label_start(text, m.start())
        label = text[start + 1:m.start() - 1]
        target = replace(m.group(1), label)
        new = label if target is None else f"[{label}]({target})"
        if target is None and text[start - 1:start] == "!": start -= 1
        text = text[:start] + new + text[m.end():]
    return text


def _label_start(text: str, end: int) -> int:
    "Return the place of the bracket that opens the label which ends at `end`"
    depth = 0
    for i in range(end - 1, -1, -1):
        depth += {"]": 1, "[": -1}.get(text[i], 0)
        if not depth: return i
    raise ValueError(f"no label before {text[end:end + 40]!r}")


def is_local(target: str) -> bool:
    "Whether a link stays in the repository"
    return not re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.I)


def markdown_of(path: Path) -> str:
    "Return the text of a Markdown file, or of a notebook's Markdown cells"
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb": return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@cache
def anchors(path: Path) -> frozenset[str]:
    "Return the anchors of a file's headings, as GitHub and MyST name them"
    blank = re.sub(_FENCE, "", markdown_of(path))
    headings = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", blank, re.MULTILINE)
    return frozenset(map(_slug, headings))


def _slug(heading: str) -> str:
    words = re.sub(r"[^\w\s-]", "", heading.strip().lower())
    return words.replace(" ", "-")


def folder_of_links(path: Path, root: Path) -> Path:
    "Return the folder where a file's links start: the root for the index, which becomes the README"
    return root if path == root / "nbs" / "index.ipynb" else path.parent


def broken_links(path: Path, root: Path) -> Iterator[str]:
    "Yield a line for each local link of a file that points to nothing"
    for target in filter(is_local, links(markdown_of(path))):
        name, _, anchor = target.partition("#")
        file = (folder_of_links(path, root) / unquote(name)).resolve() if name else path
        if not file.exists(): yield f"{path.relative_to(root)}: no file for the link {target}"
        elif anchor and file.suffix in (".md", ".ipynb") and unquote(anchor) not in anchors(file):
            yield f"{path.relative_to(root)}: no heading for the link {target}"
