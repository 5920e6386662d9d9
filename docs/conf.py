"""Sphinx's configuration of the site. Outputs are the kept ones, and no file comes from elsewhere."""
import json
import re
from pathlib import Path

from docutils import nodes
from ipython_pygments_lexers import IPython3Lexer
from pygments.lexer import bygroups, inherit, using
from pygments.lexers import PythonLexer
from pygments.token import Keyword, Operator, Text

ROOT = Path(__file__).resolve().parent.parent
project = "zztoolkit"
author = "The zztoolkit authors"
copyright = author
extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["pictures"]
nitpicky = True
language = "en"
smartquotes = False     # `--option` and quoted code stay as they are
highlight_language = "default"
python_maximum_signature_line_length = 72
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_execution_cache_path = str(ROOT / "build" / "docs" / "notebooks")
nb_merge_streams = True
nb_ipywidgets_js = {}
suppress_warnings = ["myst.header"]   # an essay may begin a section with a small heading

html_theme = "furo"
html_title = "zztoolkit"
html_static_path = [str(ROOT / "docs" / "static")]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_selector = "div.cell_input pre, div.highlight-python pre, div.highlight-sh pre"
copybutton_exclude = ".linenos, .gp, .go"


class NotebookLexer(IPython3Lexer):
    "IPython's lexer, to which the body of a `%%serve` cell is Python"
    name = "zztoolkit notebook"
    aliases = ["zz-notebook"]
    tokens = {"root": [
        (
            r"(?s)(\s*)(%%)(serve)([^\n]*\n)(.*)",
            bygroups(Text, Operator, Keyword, Text, using(PythonLexer)),
        ),
        inherit,
    ]}


def link_names(app, doctree, docname):
    "Link each `Name` in prose to its place in the reference"
    paths, objects = app.config.zz_names, app.env.get_domain("py").objects
    for literal in list(doctree.findall(nodes.literal)):
        if isinstance(literal.parent, (nodes.reference, nodes.title)): continue
        if "zz-source" in getattr(literal.parent.parent, "attributes", {}).get("classes", []): continue
        path = find_name(literal.astext(), paths, docname)
        if not path or path not in objects: continue
        there = objects[path]
        uri = app.builder.get_relative_uri(docname, there.docname) + "#" + there.node_id
        literal.replace_self(nodes.reference("", "", literal.deepcopy(), refuri=uri, internal=True))


def find_name(text, paths, docname):
    "Return the path of the public name that code is, as the page's package means it"
    match = re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", text)
    if not match or text.islower() and text.isalpha(): return None    # `size` is a word here
    package = re.match(r"(?:explanations|reference)/([a-z]+)", docname)
    inside = f"zztoolkit.{package.group(1)}.{match.group(1)}" if package else ""
    return paths.get(inside) or paths.get(match.group(1))


def setup(app):
    names = Path(app.srcdir) / "names.json"
    app.add_lexer("zz-notebook", NotebookLexer)
    app.add_config_value("zz_names", json.loads(names.read_text()), "env", [dict])
    app.connect("doctree-resolved", link_names)
