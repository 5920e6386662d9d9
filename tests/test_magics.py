"`%%serve` in a real IPython shell, against a real TorchServe."
import threading, time

import pytest
from IPython.core.interactiveshell import InteractiveShell

HEAD = """#| export
from zztoolkit import Handler, vision as V
chain = V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())"""

def cell(version: int, body: str = 'return [{"version": VERSION} for y in outputs]') -> str:
    return ("%%serve goods --model artifact --batch-size 4 --workers 1 --store STORE\n"
            "class Goods(Handler):\n    chain = chain\n    def postprocess(self, outputs):\n        " + body.replace("VERSION", str(version)))


class Notebook:
    "Cells by id, as JupyterLab runs them"
    def __init__(self, store):
        InteractiveShell.clear_instance()
        self.shell, self.store = InteractiveShell.instance(), store
        self.run("%load_ext zztoolkit")

    def run(self, source: str, cell_id: str | None = None):
        "The cell's value; what it raised is raised"
        done = self.shell.run_cell(source.replace("STORE", str(self.store)), store_history=True, cell_id=cell_id)
        done.raise_error()
        return done.result


@pytest.fixture
def notebook(tmp_path, lite0):
    nb = Notebook(tmp_path / "store")
    nb.shell.user_ns["artifact"] = lite0
    yield nb
    nb.run("%serve_stop")
    InteractiveShell.clear_instance()


class Load:
    "Eight clients, each of which asks, thinks for a fifth of a second and asks again, until told to stop; every failure is kept"
    def __init__(self, endpoint, body: bytes, clients: int = 8):
        self.endpoint, self.body, self.stop = endpoint, body, threading.Event()
        self.answers, self.failures = [], []
        self.threads = [threading.Thread(target=self.client) for _ in range(clients)]

    def client(self):
        while not self.stop.is_set():
            try: self.answers.append(self.endpoint.predict(self.body)["version"])
            except Exception as e: self.failures.append(e)
            self.stop.wait(0.2)

    def __enter__(self):
        for t in self.threads: t.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        for t in self.threads: t.join()


def test_three_runs_under_load_one_broken(notebook, photo, capsys):
    "Versions change, one is broken, eight clients never see a failure"
    notebook.run(HEAD, "head")
    goods = notebook.run(cell(1), "serve")
    assert goods.predict(photo) == {"version": 1}
    with Load(goods, photo.read_bytes()) as load:
        time.sleep(1)
        notebook.run(cell(2), "serve")
        with pytest.raises(Exception, match="KeyError: 'no such label'"): notebook.run(cell(3, "raise KeyError('no such label')"), "serve")
        assert goods.predict(photo) == {"version": 2}
        notebook.run(cell(4), "serve")
        time.sleep(1)
    assert load.failures == []
    assert set(load.answers) == {1, 2, 4} and len(load.answers) > 50
    assert [v["modelVersion"] for v in goods.server.management.versions("goods")] == [goods.info["modelVersion"]]

def test_broken_in_the_worker_only(notebook, photo):
    "A handler that fails only where TorchServe runs it: the traceback is its own, the version before still serves"
    notebook.run(HEAD, "head")
    goods = notebook.run(cell(1), "serve")
    broken = cell(2) + "\n    def initialize(self, context):\n        import os\n        assert '/models/' not in os.getcwd(), 'not in a worker'\n        super().initialize(context)"
    with pytest.raises(Exception, match="AssertionError: not in a worker"): notebook.run(broken, "serve")
    assert goods.predict(photo) == {"version": 1}
    notebook.run(cell(3), "serve")      # mended: what the broken one left in the log does not count against it
    assert goods.predict(photo) == {"version": 3}

def test_the_cell_to_mark_is_named(notebook):
    notebook.run(HEAD, "head")
    notebook.run("threshold = 0.5   # a cell nobody marked", "thresholds")
    with pytest.raises(Exception) as e: notebook.run(cell(1, "return [float(y.max()) > threshold for y in outputs]"), "serve")
    number = notebook.shell.execution_count - 2
    assert f"threshold: defined in cell [{number}], which is not marked: threshold = 0.5" in str(e.value)
    assert "goods" not in notebook.shell.user_ns
    notebook.run("#| export\nthreshold = 0.5", "thresholds")     # marked and run again
    assert notebook.run(cell(1, "return [float(y.max()) > threshold for y in outputs]"), "serve").name == "goods"

def test_an_edited_cell_replaces_what_it_was(notebook, photo):
    notebook.run(HEAD, "head")
    notebook.run("#| export\nanswer = 1", "answer")
    notebook.run("#| export\nanswer = 2", "answer")
    goods = notebook.run(cell(1, "return [{'version': answer} for y in outputs]"), "serve")
    assert goods.predict(photo) == {"version": 2}

def test_arguments_that_cannot_be(notebook):
    notebook.run(HEAD, "head")
    for change, says in ((("goods", "no-name"), "not a name for a handler"), (("--batch-size 4", "--batch-size 64"), "batch size 64 is more"),
                         (("--model artifact", "--model nowhere"), "no model there"), (("class Goods", "class A: pass\nclass Goods"), "exactly one")):
        with pytest.raises(Exception, match=says): notebook.run(cell(1).replace(*change), "serve")

def test_status_logs_bench_and_stop(notebook, photo, capsys):
    notebook.run("%serve_status")
    assert "nothing is served" in capsys.readouterr().out
    notebook.run(HEAD, "head")
    goods = notebook.run(cell(1), "serve")
    notebook.run("%serve_status")
    notebook.run("%serve_logs goods -n 5")
    out = capsys.readouterr().out
    assert "state ready" in out
    with pytest.raises(Exception, match="served: goods"): notebook.run("%serve_logs 'nobody'")     # quoted as in a shell
    assert "zz-endpoint" in goods._repr_html_()
    assert sorted(p.name for p in notebook.store.iterdir()) == ["goods.mar", "goods.mar.sha256"]
    notebook.shell.user_ns["goods_photos"] = [photo, photo.read_bytes()]
    found = notebook.run("%bench goods goods_photos -c 2 --slo 1s --seconds 4")
    assert [l.load for l in found.levels] == ["2 clients"] and found.setup.payloads == 2 and found.verdict.bound and "<table>" in found._repr_html_()
    tuned = notebook.run("%tune goods goods_photos -c 1 --slo 9s --trials 1 --seconds 1 -k batch=2,4")
    assert dict(tuned.tried[0].setting) == tuned.space.default == dict(tuned.best.setting) and tuned.best.setting["batchSize"] == 4
    assert tuned.apply(goods) is goods and goods.info["modelVersion"] == "1"     # nothing better was found
    notebook.run("%serve_stop goods")
    assert goods.server.running and goods.server.management.models() == []
    notebook.run("%serve_stop")
    assert not goods.server.running
    with pytest.raises(Exception, match="not running"): goods.predict(photo)
