"""Build the site: `python docs/build.py`. Needs settings.ini's docs_requirements, and no network."""
import os
import shutil
import sys
import time
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

from check import problems
from stage import Site, setting


def main():
    "Write the sources, let Sphinx build them, and check the result"
    from sphinx.cmd.build import main as sphinx_build
    start, work = time.monotonic(), ROOT / "build" / "docs"
    site = Site(ROOT, work / "source")
    try: site.write()
    except LookupError as e: raise SystemExit(str(e)) from None
    # -W: a warning is an error. One process of Sphinx only hands out work
    options = ["-W", "--keep-going", "-q", "-j", str((os.cpu_count() or 1) + 1)]
    html = work / "html"
    if site.has_new_sidebar:        # it is on every page
        shutil.rmtree(html, ignore_errors=True)
        options.append("-a")
    folders = ["-c", str(DOCS), "-d", str(work / "doctrees"), str(work / "source"), str(html)]
    if sphinx_build([*options, *folders]): return 1
    broken = list(problems(html))
    for line in broken: print(line, file=sys.stderr)
    if broken: return 1
    out = (ROOT / setting(ROOT, "doc_path")).resolve()
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(html, out)
    pages, seconds = len(list(out.rglob("*.html"))), time.monotonic() - start
    print(f"{pages} pages in {seconds:.0f} s: {out / 'index.html'}")
    return 0


if __name__ == "__main__": sys.exit(main())
