"`zz export --check` finds whatever differs from the notebooks, in packages of any depth."
from pathlib import Path

import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from zztoolkit.cli.main import app
from zztoolkit.cli.project import drift, export_project

SETTINGS = """[DEFAULT]
repo = shop
lib_name = shop
lib_path = shop
nbs_path = nbs
doc_path = _docs
version = 0.1
branch = main
user = shop
author = shop
author_email = shop@example.com
title = shop
description = a shop
keywords = shop
license = apache2
min_python = 3.10
"""
PRICES = Path("shop", "goods", "cost", "prices.py")


@pytest.fixture
def project(tmp_path) -> Path:
    "An exported project with a module in a nested package, and one that is kept by hand"
    root = tmp_path / "shop"
    notebook = root / "nbs" / "goods" / "cost" / "prices.ipynb"
    notebook.parent.mkdir(parents=True)
    cells = [new_code_cell("#| default_exp goods.cost.prices"), new_code_cell("#| export\nprice = 3")]
    nbformat.write(new_notebook(cells=cells), notebook)
    (root / "settings.ini").write_text(SETTINGS)
    by_hand = root / "shop" / "goods" / "by_hand.py"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_text("price = 5\n")
    export_project(root)
    assert (root / PRICES).exists() and drift(root) == []
    return root

def edit(file: Path, old: str, new: str):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_nested_module_edited_by_hand_is_found(project, monkeypatch):
    edit(project / PRICES, "price = 3", "price = 4")
    assert drift(project) == [str(PRICES)]
    monkeypatch.chdir(project / "nbs")
    result = CliRunner().invoke(app, ["export", "--check"])
    assert result.exit_code == 1 and str(PRICES) in result.output and "out of date" in result.output

def test_a_deleted_module_is_found(project):
    (project / PRICES).unlink()
    assert drift(project) == [str(PRICES)]

def test_a_generated_module_without_a_notebook_is_found(project):
    "It was exported from a notebook that is gone, or that exports to another module now"
    stale = project / PRICES.with_name("offers.py")
    stale.write_text((project / PRICES).read_text())
    assert drift(project) == [str(PRICES.with_name("offers.py"))]

def test_a_module_kept_by_hand_is_left_alone(project):
    (project / "shop" / "goods" / "by_hand.py").write_text("price = 6\n")
    assert drift(project) == []
