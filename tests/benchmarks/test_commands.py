"What the Makefile runs with `python -m`: each module does something when it is run."
import re, subprocess, sys

import pytest

from conftest import ROOT

MODULES = sorted(set(re.findall(r"python -m (zztoolkit\.benchmarks\.\w+)", (ROOT / "Makefile").read_text())))

@pytest.mark.parametrize("module", MODULES)
def test_module_runs(module):
    source = ROOT / f"{module.replace('.', '/')}.py"
    assert 'if __name__ == "__main__"' in source.read_text()

@pytest.mark.parametrize("module", ["compile", "features", "vision"])
def test_module_has_help(module):
    command = [sys.executable, "-m", f"zztoolkit.benchmarks.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout
