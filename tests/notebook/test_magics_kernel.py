"The magics in real kernels, asked over Jupyter's protocol as JupyterLab asks them."
import os

import pytest
from jupyter_client.manager import start_new_kernel

SHOUT = """%%serve shout --example hello
from zztoolkit import Handler
class Shout(Handler):
    def preprocess(self, requests): return [r.upper() for r in requests]
    def inference(self, xs): return xs
"""

class Kernel:
    "The kernel of a notebook in a folder, with our magics"
    def __init__(self, notebook):
        notebook.write_text("{}")
        env = os.environ | {"JPY_SESSION_NAME": str(notebook)}      # as Jupyter's server tells it
        self.manager, self.client = start_new_kernel(cwd=str(notebook.parent), env=env)
        self.run("%load_ext zztoolkit")

    def run(self, code: str) -> str:
        "The error of a cell, '' for none"
        done = self.client.execute_interactive(code, timeout=120, output_hook=lambda message: None)["content"]
        return "" if done["status"] == "ok" else f"{done['ename']}: {done['evalue']}"

    def completions(self, code: str, at: int | None = None) -> list[str]:
        "What a front end would show for Tab at the end of the code, each with the text that it leaves standing before it"
        at = len(code) if at is None else at
        self.client.complete(code, at)
        found = self.client.get_shell_msg(timeout=60)["content"]
        assert found["status"] == "ok" and found["cursor_end"] == at
        return [code[:found["cursor_start"]] + m for m in found["matches"]]

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)      # its server ends with it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("notebooks")
    (home / "photos").mkdir()
    (home / "labels.json").write_text("{}")
    return home

@pytest.fixture(scope="module")
def kernel(folder):
    kernel = Kernel(folder / "first.ipynb")
    yield kernel
    kernel.stop()


@pytest.mark.slow
def test_flags_are_those_of_the_magic(kernel):
    assert kernel.completions("%%serve goods --w") == ["%%serve goods --workers"]
    assert kernel.completions("%%serve goods --server m") == ["%%serve goods --server mosec"]
    assert kernel.completions("%%serve goods --workers 2 --w") != ["%%serve goods --workers 2 --workers"]
    assert kernel.completions("%%serve goods -x a --extra") == ["%%serve goods -x a --extra-file"]      # may be repeated
    assert kernel.completions("%%serve goods --ba\nclass Goods: pass", len("%%serve goods --ba")) == ["%%serve goods --batch-size"]
    assert kernel.completions("x = 1\nfound = %bench goods photos --gr") == ["x = 1\nfound = %bench goods photos --grpc"]
    for magic, flags in (("%bench goods photos", ("--concurrency", "--slo", "--seconds")), ("%tune goods photos", ("--trials", "--knob", "--apply")),
                         ("%%serve goods", ("--model", "--exact", "--replace"))):
        assert {f"{magic} {flag}" for flag in flags} <= set(kernel.completions(f"{magic} --")), magic
    assert kernel.completions("%serve_logs goods -") == ["%serve_logs goods -n"]

def test_values_are_variables_and_files_that_fit(kernel):
    kernel.run("from pathlib import Path\nartifact, photo, _hidden = Path('model.pt'), b'photo', 1\ndef code(): pass")
    assert kernel.completions("%%serve goods --model a") == ["%%serve goods --model artifact"]
    assert kernel.completions("%%serve goods -m p") == ["%%serve goods -m photos/"]
    assert kernel.completions("%%serve goods --example p") == ["%%serve goods --example photo", "%%serve goods --example photos/"]
    assert kernel.completions("%%serve goods -x ") == [f"%%serve goods -x {name}" for name in ("first.ipynb", "labels.json", "photos/")]
    assert kernel.completions("%%serve goods --store ") == ["%%serve goods --store photos/"]

@pytest.mark.slow
def test_two_notebooks_one_name(kernel, folder):
    "Two kernels, two servers, one folder: the second notebook is told before it replaces the first one's archive"
    assert not kernel.run(SHOUT)
    assert kernel.completions("%bench ") == ["%bench shout"] and kernel.completions("%serve_stop ") == ["%serve_stop shout"]
    archive = folder / "model_store" / "shout.mar"
    made = archive.read_bytes()
    second = Kernel(folder / "second.ipynb")
    try:
        problem = second.run(SHOUT)
        assert "model_store/shout.mar was made by first.ipynb" in problem and "this notebook is second.ipynb" in problem
        assert "under another name" in problem and "--replace" in problem and str(folder) not in problem and archive.read_bytes() == made
        assert not second.run(SHOUT.replace("--example", "--replace --example")) and archive.read_bytes() != made
    finally: second.stop()
    assert "was made by second.ipynb" in kernel.run(SHOUT)
    assert not kernel.run("assert shout.predict('still') == 'STILL'")     # on its own server
