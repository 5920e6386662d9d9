"The README: short, its figures those of the committed record, its install lines at the top."
import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def table_rows(title: str) -> dict[str, list[str]]:
    "Return the rows of the table below a heading, by their first cell"
    section = README.split(f"## {title}\n")[1].split("\n## ")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in cells[2:]}


def test_readme_is_short_and_begins_with_how_to_install():
    assert len(README.split()) <= 900
    top = "\n".join(README.splitlines()[:40])
    assert "pip install" in top and "make demo" in top and "make test" in top


def test_figures_are_those_of_the_record():
    from zztoolkit.benchmarks.ladder import Ladder
    lines = str(Ladder.load(ROOT / "nbs" / "records" / "ladder.json")).splitlines()
    record = {re.split(r"  +", line)[0]: re.split(r"  +", line)[1:] for line in lines[2:-1]}
    gains = table_rows("Faster, step by step")
    for row, side in {"stock": "stock", "compiled model": "compiled", "compiled model and `Chain`": "chain", "tuned": "tuned",
                      "tuned, on mosec": "tuned on mosec"}.items():
        cells = next(v for k, v in gains.items() if k.partition(":")[0] == row)
        assert cells == [record[side][0], f"{record[side][3]} ms"], row
    assert next(v for k, v in gains.items() if k.startswith("ceiling"))[0] == record["chain + model"][0]
    servers = table_rows("Beside other servers")
    assert servers["TorchServe"][:2] == [record["stock"][0], record["tuned"][0]]
    for name in ("mosec", "Triton", "BentoML", "LitServe", "Ray Serve"):
        assert servers[name][:2] == [record[name][0], record[f"{name}, ours"][0]], name
