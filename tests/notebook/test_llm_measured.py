"A language model beside others in a notebook: `%bench`, Tab, and the panel's card"
import threading

import pytest
from IPython.core.completer import CompletionContext
from IPython.core.interactiveshell import InteractiveShell

from support.pods import wait_until
from zztoolkit.cli.main import app
from zztoolkit.errors import ToolkitError
from zztoolkit.measure import Benchmark
from zztoolkit.measure.llm.results import LLMBenchmark
from zztoolkit.notebook import serve

pytestmark = pytest.mark.slow

SERVE = "%%serve assistant --llm weights\nllm = assistant"

class Notebook:
    "Cells as JupyterLab runs them"
    def __init__(self):
        InteractiveShell.clear_instance()
        self.shell = InteractiveShell.instance()
        self.run("%load_ext zztoolkit\nfrom zztoolkit.samples import smollm2\nweights = smollm2()")
        self.magics = self.shell.magics_manager.registry["ServeMagics"]

    def run(self, source: str):
        done = self.shell.run_cell(source, store_history=True)
        done.raise_error()
        return done.result

    def complete(self, text: str) -> list[str]:
        "What Tab offers at the end of a line"
        matcher = next(m for m in self.shell.Completer.custom_matchers if m.matcher_identifier == "zztoolkit.magics")
        context = CompletionContext(text.split(" ")[-1], text, len(text), 0, 100)
        return [c.text for c in matcher(context)["completions"]]

@pytest.fixture(scope="module")
def notebook():
    "A notebook that serves a language model"
    nb = Notebook()
    nb.run(SERVE)
    yield nb
    for server in [*nb.magics.servers, *nb.magics.llms.values()]: server.stop()
    serve._shared_server.cache_clear()
    InteractiveShell.clear_instance()

@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("What is the capital of France?\nTell me a story about a wolf.\n")
    return file


def test_bench_takes_its_name_and_a_file_of_questions(notebook, questions, tmp_path):
    saved = tmp_path / "assistant.json"
    b = notebook.run(f"%bench assistant {questions} -c 1,2 --seconds 1 --max-tokens 8 --slo ttft=60s,tpot=10s --save {saved}")
    assert isinstance(b, LLMBenchmark) and [l.clients for l in b.levels] == [1, 2]
    assert all(l.total.tokens > 0 and l.total.good == 1 for l in b.levels) and str(Benchmark.load(saved)).startswith("assistant, 8 answers")
    assert b.setup.max_tokens == 8 and b.objective.tpot_ms == 10_000
    notebook.run("asked = ['Hello', [{'role': 'user', 'content': 'Who are you?'}]]")
    assert notebook.run("%bench assistant asked -c 1 --seconds 1 --max-tokens 4").setup.prompts == 2
    with pytest.raises(ToolkitError, match="not an objective of a language model"): notebook.run("%bench assistant asked -c 1 --slo 50ms")
    with pytest.raises(ToolkitError, match="no model 'asistant' is served\nserved: assistant"): notebook.run("%bench asistant asked")

def test_bench_takes_an_address(notebook, questions, monkeypatch, capsys, tmp_path):
    "So does `zz bench`, and its token may be in a file"
    llm = notebook.magics.llms["assistant"]
    monkeypatch.setenv("OPENAI_API_KEY", llm.token)
    assert notebook.run(f"%bench {llm.url}/v1 {questions} -c 1 --seconds 1 --max-tokens 4").setup.name == "assistant"
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    (tmp_path / "token").write_text(f"{llm.token}\n")
    capsys.readouterr()
    def zz(*args): return app([*map(str, args)], standalone_mode=False)
    options = ("-c", 1, "--seconds", 1, "--max-tokens", 4, "--token-file", tmp_path / "token")
    zz("bench", llm.url, questions, *options, "--save", tmp_path / "a.json", "--picture", tmp_path / "a.png")
    zz("bench", llm.url, questions, *options, "--against", tmp_path / "a.json")
    said = capsys.readouterr().out
    assert "TTFT p50" in said and "bound by" in said and "ttft_p50" in said.partition("against")[2], said
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

def test_bench_through_the_gateway(notebook, monkeypatch):
    "The gateway passes answers on as they come; it does not tell how long requests wait"
    gateway = notebook.run("%serve_gateway")
    monkeypatch.setenv("OPENAI_API_KEY", gateway.token)
    b = notebook.run(f"%bench {gateway.url} questions -c 2 --seconds 1 --max-tokens 16 --model assistant".replace("questions", "asked"))
    assert b.levels[0].total.ttft_p50 < 0.8 * b.levels[0].total.mean and not b.levels[0].errors
    notebook.magics.server.stop()

def test_tab_offers_its_name(notebook):
    for line in ("%bench ", "%serve_status as", "%serve_logs ", "%serve_stop a"): assert notebook.complete(line) == ["assistant"], line
    assert notebook.complete("%tune ") == [] and notebook.complete("%serve_gateway ") == []
    notebook.run("asked = ['Hello']")
    offered = notebook.complete("%bench assistant ")
    assert "asked" in offered and not {"assistant", "llm"} & set(offered)       # the endpoint is not a prompt

def test_the_panel_shows_how_its_answers_grow(notebook, monkeypatch):
    llm = notebook.magics.llms["assistant"]
    notebook.run("%serve_panel")
    panel = notebook.magics.panel
    monkeypatch.setattr(panel._servers, "find", lambda: [panel.server])     # not those of the tests beside this one
    panel.poll()
    card = panel._llms.cards["assistant"]
    assert card.watcher.last.state == "ready" and card.watcher.last.active == 0 and card.watcher.last.memory > 100
    thread = threading.Thread(target=lambda: llm.chat("Tell me a long story about a wolf.", max_tokens=120, show=False))
    thread.start()
    views, happened = [], []
    while thread.is_alive():
        happened.append(panel.poll())
        views.append(card.watcher.last)
        thread.join(0.5)
    assert any(happened) and max(v.active for v in views) == 1 and max(v.tokens for v in views) > 1
    assert 0 < card.watcher.last.first < 30 and "First token" in card.figures.value
    assert "assistant" in panel.still() and "TorchServe" not in panel.still()     # which was not started
    panel.close()

def test_the_panel_says_when_it_has_died_and_stops_it(notebook):
    notebook.run("%%serve other --llm weights\npass")
    notebook.run("%serve_panel")
    panel, llm = notebook.magics.panel, notebook.magics.llms["other"]
    panel.poll()
    card = panel._llms.cards["other"]
    llm.process.kill()
    llm.process.wait()
    assert panel.poll() and card.watcher.last.state == "died" and "ended by itself" in card.figures.value
    card.actions.buttons["stop"].click()
    card.actions.confirmation.yes.click()
    wait_until(lambda: "other" not in notebook.magics.llms, 60)
    panel.poll()
    assert list(panel._llms.cards) == ["assistant"] == list(notebook.magics.llms)
    panel.close()
