"`%%serve --server mosec` in a real IPython shell"
import psutil, pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from zztoolkit.errors import ToolkitError
from zztoolkit.notebook import serve
from zztoolkit.notebook.serve import serve_model

SHOUT = """class Shout(Handler):
    def preprocess(self, requests): return list(requests)
    def inference(self, xs): return xs
    def postprocess(self, xs): return [f"{x.upper()} VERSION" for x in xs]
"""


@pytest.fixture
def shell(tmp_path):
    "A new shell with the magics loaded; its servers end with the test"
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    def run(source: str):
        done = shell.run_cell(source.replace("STORE", str(tmp_path / "store")), store_history=True)
        done.raise_error()
        return done.result
    run("%load_ext zztoolkit")
    run("from zztoolkit import Handler\n#| handler shout")
    yield run
    for server in shell.magics_manager.registry["ServeMagics"].servers: server.stop()
    serve._shared_server.cache_clear()
    InteractiveShell.clear_instance()

@pytest.mark.slow
def test_serve_moves_to_another_server(shell, capsys):
    "The same cell on TorchServe and on mosec: the endpoint answers all the time, and the old server gives the model up"
    header = "#| export\nfrom zztoolkit import Handler"
    shell(header)
    first = shell("%%serve shout --store STORE\n" + SHOUT.replace("VERSION", "1"))
    assert first.server.name == "torchserve" and first.predict("hi") == "HI 1"
    second = shell("%%serve shout --store STORE --server mosec --workers 2\n" + SHOUT.replace("VERSION", "2"))
    assert second.server.name == "mosec" and second.predict("hi") == "HI 2" and second.status.ready == 2
    assert first.server.models() == [] and second.server.models() == ["shout"]
    shell("%serve_status")
    shell("%serve_logs shout -n 5")
    capsys.readouterr()
    panel = shell("%serve_panel")
    assert panel is None and "shout: %serve_panel shows TorchServe's models" in capsys.readouterr().out
    result = shell("%bench shout 'a sentence' -c 2 --seconds 4")
    assert result.levels[0].total.rate > 10 and not result.levels[0].errors and result.levels[0].stages["inference"] > 0
    third = shell("%%serve shout --store STORE --server mosec\n" + SHOUT.replace("VERSION", "3"))
    assert third.predict("hi") == second.predict("hi") == "HI 3"
    pids = third.status.pids
    shell("%serve_stop shout")
    assert third.server.models() == [] and not any(map(psutil.pid_exists, pids))
    shell("%serve_stop")
    assert "the server is stopped" in capsys.readouterr().out and not third.server.running

def test_words_of_the_option(shell, capsys):
    with pytest.raises(UsageError): shell("%%serve shout --server tomcat\n" + SHOUT)
    assert "no such server: 'tomcat'; one of torchserve, mosec" in capsys.readouterr().err

@pytest.mark.slow
def test_function_form(tmp_path, monkeypatch):
    "serve_model takes a name, or a server; one that is not installed says how to get it"
    file = tmp_path / "shout.py"
    file.write_text("from zztoolkit import Handler\n" + SHOUT)
    endpoint = serve_model(file, server="mosec", store=tmp_path / "store", example="hello")
    try: assert endpoint.predict("hi") == "HI VERSION" and endpoint.server is serve.shared_server("mosec")
    finally: endpoint.server.stop()
    with pytest.raises(ToolkitError, match="no such server"): serve_model(file, server="tomcat", store=tmp_path / "store")
    monkeypatch.setattr("zztoolkit.serving.server.installed", lambda package: "")
    serve._shared_server.cache_clear()
    with pytest.raises(ToolkitError, match=r"mosec is not installed\n→ pip install mosec==0.9.8"): serve_model(file, server="mosec", store=tmp_path / "store")
