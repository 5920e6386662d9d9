"""Build the site: `python docs/build.py`. Needs the packages of settings.ini's docs_requirements and no network."""
import sys
import time
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

from check import problems  # noqa: E402
from stage import Site, setting  # noqa: E402


def main():
    "Write the sources, let Sphinx build them, and check the result"
    from sphinx.cmd.build import main as sphinx_build
    start, work = time.monotonic(), ROOT / "build" / "docs"
    out = (ROOT / setting(ROOT, "doc_path")).resolve()
    Site(ROOT, work / "source").write()
    options = ["-W", "--keep-going", "-q", "-j", "2", "-c", str(DOCS), "-d", str(work / "doctrees")]
    if sphinx_build([*options, str(work / "source"), str(out)]): return 1
    broken = list(problems(out))
    for line in broken: print(line, file=sys.stderr)
    if not broken: print(f"{len(list(out.rglob('*.html')))} pages in {time.monotonic() - start:.0f} s: {out / 'index.html'}")
    return bool(broken)


if __name__ == "__main__": sys.exit(main())
