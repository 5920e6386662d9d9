"""Load every artifact that `compile` wrote in a fresh process, as a server's worker would."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from common import ENGINES, report
from try_load import try_artifact


def main():
    folders = sorted(p for p in ENGINES.glob("*") if (p / "artifact.json").exists())
    if not folders: return report("fresh", outcome=f"no artifact in {ENGINES}: run compile first")
    with ThreadPoolExecutor(len(folders)) as pool:
        for tried in pool.map(try_artifact, folders): report("fresh", **tried)


if __name__ == "__main__": main()
