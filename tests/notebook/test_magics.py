"`%%serve` in a real IPython shell, against a real TorchServe."
import os, signal, subprocess, sys, threading, time, zipfile

import pytest
from IPython.core.interactiveshell import InteractiveShell

import zztoolkit
from zztoolkit.notebook import maker
from zztoolkit.notebook.maker import check_maker
from zztoolkit.archive.mar import open_mar
from zztoolkit.errors import ToolkitError

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


@pytest.fixture(scope="module")
def servers():
    "Those of the magics, which is one: the shells of a process share it, and it ends with the last test"
    found = []
    yield found
    for server in found: server.stop()

@pytest.fixture
def notebook(tmp_path, tiny, servers):
    "A new shell; no model of the tests before is served"
    nb = Notebook(tmp_path / "store")
    nb.shell.user_ns["artifact"] = tiny
    magics = nb.shell.magics_manager.registry["ServeMagics"]
    servers[:] = [magics.server]
    yield nb
    if magics.others or magics.gateways: nb.run("%serve_stop")
    for name in magics.server.models() if magics.server.running else []: nb.run(f"%serve_stop {name}")
    InteractiveShell.clear_instance()


class Load:
    "Eight clients, each of which asks, thinks for two fifths of a second and asks again, until told to stop; every failure is kept"
    def __init__(self, endpoint, body: bytes, clients: int = 8):
        self.endpoint, self.body, self.stop = endpoint, body, threading.Event()
        self.answers, self.failures = [], []
        self.threads = [threading.Thread(target=self.client) for _ in range(clients)]

    def client(self):
        while not self.stop.is_set():
            try: self.answers.append(self.endpoint.predict(self.body)["version"])
            except Exception as e: self.failures.append(e)
            self.stop.wait(0.4)

    def wait_for(self, version: int):
        end = time.monotonic() + 20
        while version not in self.answers and time.monotonic() < end: time.sleep(0.05)

    def __enter__(self):
        for t in self.threads: t.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        for t in self.threads: t.join()


def test_a_store_that_cannot_be_is_told_at_once(notebook, servers):
    notebook.run("%serve_stop")
    with pytest.raises(ToolkitError, match="no archive can be kept in /proc/x"): notebook.run("%%serve shout --store /proc/x\n" + SHOUT)
    assert not servers[0].running

def test_three_runs_under_load_one_broken(notebook, photo, capsys):
    "Versions change, one is broken, eight clients never see a failure"
    notebook.run(HEAD, "head")
    goods = notebook.run(cell(1), "serve")
    assert goods.predict(photo) == {"version": 1}
    with Load(goods, photo.read_bytes()) as load:
        load.wait_for(1)
        notebook.run(cell(2), "serve")
        with pytest.raises(Exception, match="KeyError: 'no such label'"): notebook.run(cell(3, "raise KeyError('no such label')"), "serve")
        assert goods.predict(photo) == {"version": 2}
        notebook.run(cell(4), "serve")
        load.wait_for(4)
    assert load.failures == []
    assert set(load.answers) == {1, 2, 4} and len(load.answers) > 50
    assert [v["modelVersion"] for v in goods.server.management.versions("goods")] == [goods.info["modelVersion"]]

@pytest.mark.slow
def test_broken_in_the_worker_only(notebook, photo):
    "A handler that fails only where TorchServe runs it: the traceback is its own, the version before still serves"
    notebook.run(HEAD, "head")
    goods = notebook.run(cell(1), "serve")
    broken = cell(2) + "\n    def initialize(self, context):\n        import os\n        assert '/models/' not in os.getcwd(), 'not in a worker'\n        super().initialize(context)"
    with pytest.raises(Exception, match="AssertionError: not in a worker"): notebook.run(broken, "serve")
    assert goods.predict(photo) == {"version": 1}
    notebook.run(cell(3), "serve")      # mended: what the broken one left in the log does not count against it
    assert goods.predict(photo) == {"version": 3}

@pytest.mark.slow
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

# A front end that sends no cell ids: plain IPython, and some editors

@pytest.mark.slow
def test_without_ids_an_edited_cell_replaces_what_it_was(notebook, photo):
    notebook.run(HEAD)
    notebook.run("#| export\nanswer = 1")
    notebook.run("#| export\nimport math\nanswer = 2")
    notebook.run("import math\nscratch = math.pi")       # takes no marked cell's place: its imports are no definitions of its own
    cells = notebook.shell.magics_manager.registry["ServeMagics"].cells
    assert cells.marked("goods") == [HEAD, "#| export\nimport math\nanswer = 2"]
    notebook.run("from zztoolkit import Handler, vision as V\nbatch = 4")
    goods = notebook.run(cell(1, "return [{'version': math.floor(answer)} for y in outputs]"))
    assert goods.predict(photo) == {"version": 2}
    with pytest.raises(ToolkitError, match="no model there"): notebook.run(cell(1).replace("--model artifact", "--model nowhere").replace("class Goods", "answer = 3\nclass Goods"))
    assert "#| export\nimport math\nanswer = 2" in cells.marked("goods")      # a %%serve cell takes no other one's place

def test_without_ids_both_versions_are_shown(notebook):
    "Where an edited cell cannot be told from another one"
    notebook.run(HEAD)
    notebook.run("limit = 1\n")
    notebook.run("#| export\nfloor = limit\nceiling = 2")
    notebook.run("#| export\nfloor = 1")      # edited: `ceiling` is gone
    old, new = notebook.shell.execution_count - 2, notebook.shell.execution_count - 1
    with pytest.raises(ToolkitError) as e: notebook.run(cell(1, "return [floor for y in outputs]"))
    assert "limit: defined in cell" in str(e.value) and f"it is not known whether [{new}] replaces [{old}]" in str(e.value)
    assert f"[{old}] #| export\n  floor = limit\n  ceiling = 2\n  [{new}] #| export\n  floor = 1" in str(e.value)

def test_without_ids_a_mark_that_went_is_told(notebook):
    notebook.run(HEAD)
    notebook.run("#| export\nthreshold = 0.5")
    notebook.run("threshold = 0.7")         # the mark taken off, or a cell to try something?
    with pytest.raises(ToolkitError) as e: notebook.run(cell(1, "return [threshold for y in outputs]"))
    number = notebook.shell.execution_count - 2
    assert f"threshold: defined in cell [{number}], which is not marked: threshold = 0.7" in str(e.value)
    assert f"cell [{number - 1}], which was marked, defined it before: threshold = 0.5" in str(e.value)

def test_arguments_that_cannot_be(notebook):
    notebook.run(HEAD, "head")
    for change, says in ((("goods", "no-name"), "not a name for a handler"), (("--batch-size 4", "--batch-size 64"), "batch size 64 is more"),
                         (("--model artifact", "--model nowhere"), "no model there"), (("class Goods", "class A: pass\nclass Goods"), "exactly one")):
        with pytest.raises(Exception, match=says): notebook.run(cell(1).replace(*change), "serve")

@pytest.mark.parametrize("option, says", [("--workers 0", "--workers/-w: must be a positive whole number, not 0"), ("--workers many", "--workers/-w: must be"),
                                          ("--batch-size -1", "--batch-size/-b: "), ("--max-batch-delay 2.5", "--max-batch-delay/-d: must be a whole number, not 2.5")])
def test_a_wrong_option_is_named_as_it_was_typed(notebook, option, says):
    with pytest.raises(Exception) as e: notebook.run(f"%%serve goods {option}\nclass Goods: pass")
    assert says in str(e.value) and "minWorkers" not in str(e.value)

@pytest.mark.parametrize("line, says", [
    ("%%serve goods --max-batch-delay 99999999999\nclass Goods: pass", "--max-batch-delay/-d: must be at most 1000000"),     # TorchServe would take 100 ms
    ("%bench goods xs -c 4,0", "--concurrency/-c: must be a positive whole number, not 0"), ("%bench goods xs --rate 0", "--rate/-r: must be a number more than 0, not 0"),
    ("%bench goods xs --seconds nan", "--seconds/-s: must be"), ("%bench goods xs --slo 50", "--slo: not a duration: '50'; 50ms, or 1.5s"),
    ("%bench goods xs --save nowhere/x.json", "--save: nowhere/x.json cannot be written"), ("%tune goods xs --save nowhere/x.json", "--save: nowhere/x.json cannot"),
    ("%tune goods xs --trials 0", "--trials/-n: must be a positive whole number, not 0"), ("%tune goods xs --memory much", "--memory: not a size of memory: 'much'; 2GB"),
    ("%tune goods xs -k workers=0", "--knob/-k: each value of workers must be a positive whole number: 0"), ("%tune goods xs -k delay=-1", "each value of delay must be a whole number"),
    ("%serve_logs goods -n -3", "-n: must be a positive whole number, not -3")])
def test_other_wrong_options_too(notebook, line, says):
    with pytest.raises(Exception) as e: notebook.run(line)
    assert says in str(e.value)

def test_a_name_that_python_can_import_is_suggested(notebook):
    for name, like in (("tiny-model", "tiny_model"), ("3d", "model_3d"), ("class", "class_"), ("v1.2", "v1_2")):
        with pytest.raises(Exception, match=f"use one that Python can import: {like}$"): notebook.run(f"%%serve {name}\nclass Goods: pass")

SHOUT = """from zztoolkit import Handler
class Shout(Handler):
    def preprocess(self, requests): return [r.upper() for r in requests]
    def inference(self, xs): return xs
"""

@pytest.mark.slow
def test_a_sentence_is_an_example(notebook, tmp_path):
    "Text, a variable of the notebook, and a file, which is a file"
    shout = notebook.run("%%serve shout --store STORE --example 'hello, you'\n" + SHOUT)
    assert shout.predict("hello") == "HELLO" and shout.predict(["a", "b"]) == ["A", "B"]
    notebook.shell.user_ns["sentence"] = "from a variable"
    assert notebook.run("%%serve shout --store STORE --example sentence\n" + SHOUT).predict("x") == "X"
    with pytest.raises(Exception, match="AttributeError: 'dict' object has no attribute 'upper'"):
        (tmp_path / "record.json").write_text("{}")
        notebook.run(f"%%serve shout --store STORE --example {tmp_path}/record.json\n" + SHOUT)

@pytest.mark.slow
def test_the_same_notebook_is_no_obstacle(notebook, tmp_path, monkeypatch):
    "Run again after its kernel was restarted, renamed, or by a program that tells no name"
    serve = "%%serve shout --store STORE --example hello\n" + SHOUT
    (tmp_path / "mine.ipynb").write_text("{}")
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "mine.ipynb"))
    notebook.run(serve)
    assert open_mar(notebook.store / "shout.mar").config["notebook"] == "mine.ipynb"
    monkeypatch.setattr(maker, "DIGESTS", {})      # as after a restart
    module = tmp_path / "shout.py"
    module.write_text("another handler")
    assert check_maker(notebook.store, module, "mine.ipynb") == ""
    with pytest.raises(ToolkitError, match="store/shout.mar was made by mine.ipynb\nthis notebook is other.ipynb"): check_maker(notebook.store, module, "other.ipynb")
    assert check_maker(notebook.store, module, "") == "store/shout.mar was made by mine.ipynb; it is replaced"
    (tmp_path / "mine.ipynb").rename(tmp_path / "other.ipynb")
    assert check_maker(notebook.store, module, "other.ipynb") == "store/shout.mar was made by mine.ipynb; it is replaced"

@pytest.mark.slow
def test_an_interrupt_is_one_line(notebook, capsys):
    "Not the frames of the HTTP client; and the server goes on"
    slow = notebook.run("%%serve slow --store STORE\n" + SHOUT.replace("r.upper()", "(__import__('time').sleep(r), r)[1]").replace("Shout", "Slow"))
    for call in ("slow.predict(1.5)", "slow.predict([1.5, 1.5])"):
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
        capsys.readouterr()
        done = notebook.shell.run_cell(call)
        assert isinstance(done.error_in_exec, KeyboardInterrupt)
        assert capsys.readouterr().out.strip() == "KeyboardInterrupt: the prediction was interrupted; served models keep running"
    assert slow.predict(0) == 0
    notebook.run("from zztoolkit.measure.benchmarking import benchmark\nfrom zztoolkit.measure.tuning.tuner import tune\nfrom zztoolkit import serve_model")
    for call, what in (("benchmark(slow, 0.01, 1)", "the measurement"), ("tune(slow, 0.01, 1, trials=1)", "tuning"), ("serve_model(Slow, store='STORE')", "serving")):
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        capsys.readouterr()
        done = notebook.shell.run_cell(call.replace("STORE", str(notebook.store)))
        assert isinstance(done.error_in_exec, KeyboardInterrupt), call
        out, err = capsys.readouterr()
        assert (out.strip(), err) == (f"KeyboardInterrupt: {what} was interrupted; served models keep running", ""), call
    assert slow.predict(0) == 0

@pytest.mark.slow
def test_serve_model_in_a_notebook(notebook, photo):
    "The class, and of the notebook's cells what it uses, marked or not; on the server of the magics"
    notebook.run("from zztoolkit import Handler, serve_model, vision as V\nimport os as system")
    notebook.run("threshold = 0.5\nunused = system.getpid()", "threshold")
    notebook.run("chain = V.Chain(V.Decode(), V.Resize(256), V.CenterCrop(224), V.Normalize())")
    notebook.run("class QualityInspection(Handler):\n    chain = chain\n    def postprocess(self, outputs): return [{'sure': threshold} for y in outputs]", "class")
    call = "served = serve_model(QualityInspection, artifact, batch_size=4, workers=1, max_batch_delay=5, store='STORE')"
    notebook.run(call)
    served = notebook.shell.user_ns["served"]
    assert served.name == "quality_inspection" and served.predict(photo) == {"sure": 0.5} and (served.info["batchSize"], served.info["maxBatchDelay"]) == (4, 5)
    with zipfile.ZipFile(notebook.store / "quality_inspection.mar") as z: source = z.read("quality_inspection.py").decode()
    assert "threshold = 0.5" in source and "unused" not in source and "system" not in source and "serve_model(" not in source
    notebook.run("threshold = 0.75", "threshold")       # run again after the class: it comes before it all the same
    notebook.run(call)
    assert served.predict(photo) == {"sure": 0.75} and served.info["modelVersion"] == "2"
    assert notebook.shell.magics_manager.registry["ServeMagics"].server is served.server
    for wrong, says in ((dict(workers=0), "workers must be a positive whole number"), (dict(name="tiny-model"), "tiny_model"), (dict(model="nowhere"), "no model there")):
        with pytest.raises(ToolkitError, match=says): zztoolkit.serve_model(notebook.shell.user_ns["QualityInspection"], **wrong)

SCRIPT = """
import math
import zztoolkit as z
from zztoolkit import Handler

LOUD = "!?"
secret = open("/etc/hostname").read()

def count(text): return sum(map(text.count, LOUD))

class LoudSpeech(Handler):
    def preprocess(self, requests): return [count(r) for r in requests]
    def inference(self, xs): return [math.sqrt(x) for x in xs]

if __name__ == "__main__":
    print(z.serve_model(LoudSpeech, example="hello!", store="store").predict(["hey!!!!", "hm"]))
    print(z.serve_model("loud_speech.py", example="hello!", store="store", name="again").predict("hey!"))
"""

@pytest.mark.slow
def test_serve_model_in_a_script(tmp_path):
    "A class of a script, then a file of a handler; the server ends with the script"
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "loud_speech.py").write_text(SCRIPT.partition("if __name__")[0].replace("import zztoolkit as z\n", ""))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == ["[2.0, 0.0]", "1.0"], done.stderr
    with zipfile.ZipFile(tmp_path / "store" / "loud_speech.mar") as z: source = z.read("loud_speech.py").decode()
    assert "def count" in source and "secret" not in source and "__main__" not in source

@pytest.mark.slow
def test_a_first_handler_that_fails_at_once(tmp_path, monkeypatch):
    "The server came up while it was tried, and is whole: the next handler is served at once"
    (tmp_path / "loud.py").write_text("from zztoolkit import Handler\nclass Loud(Handler):\n    def preprocess(self, xs): return xs\n"
                                      "    def inference(self, xs): return xs\n    def postprocess(self, xs): return [x.upper() for x in xs]\n")
    def fail(*args, **options): raise ToolkitError("broken at once")
    server = zztoolkit.LocalServer()
    try:
        options = {"example": "a", "store": tmp_path / "store", "server": server}
        with monkeypatch.context() as m:
            m.setattr("zztoolkit.notebook.serve.pack", fail)
            with pytest.raises(ToolkitError, match="broken at once"): zztoolkit.serve_model(tmp_path / "loud.py", **options)
        assert server.running and server.models() == []
        assert zztoolkit.serve_model(tmp_path / "loud.py", **options).predict("hey") == "HEY"
    finally: server.stop()

def test_serve_model_says_what_it_cannot_find():
    made = type("Made", (), {})
    with pytest.raises(ToolkitError, match="the source of Made was not found"): zztoolkit.serve_model(made)

@pytest.mark.slow
def test_status_logs_bench_and_stop(notebook, photo, capsys, monkeypatch):
    monkeypatch.setattr("zztoolkit.measure.tuning.runner.NOISE_CORES", 99)      # the tests beside this one take cores
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
    assert [l.load for l in found.levels] == ["2 clients"] and found.setup.payloads == 2 and found.bottleneck.resource and "<table class='zz-table'>" in found._repr_html_()
    tuned = notebook.run("%tune goods goods_photos -c 1 --slo 9s --trials 1 --seconds 1 -k batch=2,4")
    assert dict(tuned.trials[0].setting) == tuned.space.default == dict(tuned.best.setting) and tuned.best.setting["batch_size"] == 4
    assert tuned.apply(goods) is goods and goods.info["modelVersion"] == "1"     # nothing better was found
    notebook.run("%serve_stop goods")
    assert goods.server.running and goods.server.management.models() == []
    notebook.run("%serve_stop")
    assert not goods.server.running
    with pytest.raises(Exception, match="not running"): goods.predict(photo)

@pytest.mark.slow
def test_the_gateway_of_a_notebook(notebook, photo):
    "Opened by a magic, for a client of the protocol; it ends with the server"
    import httpx
    notebook.run(HEAD, "chain")
    notebook.run(cell(1), "goods")
    gateway = notebook.run("%serve_gateway")
    assert notebook.run("%serve_gateway goods") is gateway and gateway.running
    r = httpx.get(f"{gateway.url}/v2/models/goods", headers={"Authorization": f"Bearer {gateway.token_file.read_text()}"}, trust_env=False)
    assert r.json()["name"] == "goods"
    notebook.run("%serve_stop")
    assert not gateway.running
