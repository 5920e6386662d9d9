"The documentation: public names are described, links lead somewhere, no page shows a directive"
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from links import broken_links, links, markdown_of, replace_links
from names import describe, packages, public_names
from notebooks import make_page
from reference import escape, first_sentence
from places import place_of, read_json
from stage import Site

# A docstring begins with a verb or a noun, not with a question, a pronoun or a preposition
OTHERS = {
    "what", "how", "who", "whose", "which", "where", "when", "why", "whether",
    "is", "are", "was", "does", "do", "can", "has", "have",
    "it", "its", "itself", "this", "these", "that", "those", "there",
    "of", "in", "on", "for", "with", "without", "from", "to", "by", "at", "as", "if",
}


def notebooks():
    "Every notebook of the repository"
    found = sorted((ROOT / "nbs").rglob("*.ipynb"))
    return [p for p in found if ".ipynb_checkpoints" not in p.parts]

def texts():
    "Every Markdown file that people read, and every notebook"
    return [*ROOT.glob("*.md"), *(ROOT / "docs" / "pages").glob("*.md"), *notebooks()]

def table_rows():
    "The rows of each Markdown table, with the file it is in"
    for path in texts():
        tables = re.findall(r"^\|.*(?:\n\|.*)+", markdown_of(path), re.MULTILINE)
        yield from ((f"{path.name}: {t[:60]}", t.splitlines()) for t in tables)

def all_names():
    return [n for p in packages(ROOT) for n in public_names(ROOT, p) if n.kind != "data"]

def test_public_names_are_described():
    names = all_names()
    assert len(names) > 100
    assert not [n.path for n in names if not n.doc]

def test_docstrings_begin_with_a_verb_or_a_noun():
    begins = {n.path: re.sub(r"\W", "", n.doc.split()[0]).lower() for n in all_names() if n.doc}
    assert not {path: word for path, word in begins.items() if word in OTHERS}

def test_links_point_to_something():
    assert not [line for path in texts() for line in broken_links(path, ROOT)]

def test_rows_of_tables_are_whole():
    "A `|` in the code of a cell ends the cell, unless it is escaped"
    cells = {path: [row.count("|") - row.count(r"\|") for row in rows] for path, rows in table_rows()}
    assert not [path for path, counts in cells.items() if len(set(counts)) > 1]

def test_every_notebook_has_a_page(tmp_path):
    "A place of its own for each, and no directive in it but those that a reader writes"
    site = Site(ROOT, tmp_path)
    for path in notebooks():
        page = make_page(read_json(path), path.name, site.pages[path].title)
        text = "\n".join(c["source"] for c in page["cells"])
        assert not re.search(r"^#\|(?! *handler)", text, re.MULTILINE), path

def test_places():
    assert place_of("nbs/vision/02_geometry") == "explanations/vision/geometry"
    assert place_of("nbs/05a_device") == "explanations/device"
    assert place_of("nbs/tutorials/to_production") == "tutorials/to_production"

TOY = '''
from dataclasses import dataclass, field

@dataclass
class Toy:
    "A toy"
    size: int                       # in centimetres
    parts: list = field(default_factory=list)

    def play(self,
        friends: int | None = None, # how many;
        # None: alone
        *,
        loud=False,
    ) -> str: # what is heard
        "Play with it"
        return ""

    def _hide(self): "Internal"
'''

def test_comments_beside_parameters(tmp_path):
    "A comment belongs to the parameter on its line, and goes on in lines of its own"
    (tmp_path / "zztoolkit").mkdir()
    (tmp_path / "zztoolkit" / "toy.py").write_text(TOY)
    toy = describe(tmp_path, "zztoolkit", "zztoolkit.toy", "Toy")
    assert (toy.kind, toy.doc, toy.signature) == ("class", "A toy", "(size, parts=[])")
    assert [p.comment for p in toy.parameters] == ["in centimetres", ""]
    [play] = toy.members
    assert play.signature == "(friends=None, *, loud=False)"
    assert [p.comment for p in play.parameters] == ["how many; None: alone", ""]
    assert play.parameters[0].annotation == "int | None"
    assert (play.returns.annotation, play.returns.comment) == ("str", "what is heard")

def test_links_of_markdown():
    "Code is left alone"
    text = "[a](b.md#c), `[no](x)`, ![p](q.png)\n\n```\n[no](y)\n```\n[`d`](e_(f).md)"
    assert list(links(text)) == ["b.md#c", "q.png", "e_(f).md"]
    new = replace_links(text, lambda target, label: None if target == "q.png" else target.upper())
    assert new == "[a](B.MD#C), `[no](x)`, p\n\n```\n[no](y)\n```\n[`d`](E_(F).MD)"

def test_docstrings_as_markdown():
    assert escape("a|b `c|d` <e> f*") == r"a|b `c|d` \<e> f\*"
    assert escape("a|b `c|d`", cell=True) == r"a\|b `c\|d`"
    assert first_sentence("Read a .mar file. Raise `X`.\n\nMore.") == "Read a .mar file"
