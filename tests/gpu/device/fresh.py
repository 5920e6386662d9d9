"""Load every artifact that `compile` wrote in a fresh process, as a server's worker would."""
from __future__ import annotations

from common import ENGINES, report
from try_load import try_artifact


def main():
    folders = [p for p in ENGINES.glob("*") if (p / "artifact.json").exists()]
    folders.sort(key=lambda p: ("aotinductor" in p.name, p.name))       # those that may hang come last
    if not folders: report("fresh", outcome=f"no artifact in {ENGINES}: run compile first")
    for folder in folders: report("fresh", **try_artifact(folder))


if __name__ == "__main__": main()
