"`%%serve NAME --llm MODEL` in a real IPython shell"
import openai, psutil, pytest
from IPython.core.interactiveshell import InteractiveShell

from zztoolkit.errors import ToolkitError
from zztoolkit.notebook import serve

SERVE = "%%serve assistant --llm weights\nanswer = assistant.chat('What is the capital of France?')"

@pytest.fixture
def shell():
    "A new shell with the magics loaded; what it serves ends with the test"
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    def run(source: str):
        done = shell.run_cell(source, store_history=True)
        done.raise_error()
        return done.result
    run("%load_ext zztoolkit\nfrom zztoolkit.samples import smollm2\nweights = smollm2()")
    yield run
    magics = shell.magics_manager.registry["ServeMagics"]
    for server in [*magics.servers, *magics.llms.values()]: server.stop()
    serve._shared_server.cache_clear()
    InteractiveShell.clear_instance()

@pytest.mark.slow
def test_a_language_model_from_a_cell(shell, capsys):
    first = shell(SERVE)
    assert "The capital of France is Paris." in capsys.readouterr().out and "Paris" in shell("answer")
    gateway = shell("%serve_gateway")
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.token, max_retries=0) as client:
        assert [m.id for m in client.models.list()] == ["assistant"]
        pids = [first.process.pid, *(p.pid for p in psutil.Process(first.process.pid).children(recursive=True))]
        second = shell(SERVE)       # again: the gateway follows, and the one before has gone
        assert second is not first and not any(map(psutil.pid_exists, pids))
        asked = client.chat.completions.create(
            model="assistant", messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=20)
        assert asked.usage.completion_tokens > 0
        shell("%serve_status")
        shell("%serve_logs assistant -n 5")
        capsys.readouterr()
        shell("%serve_stop assistant")
        assert "assistant is stopped" in capsys.readouterr().out and not second.running
        with pytest.raises(openai.NotFoundError): client.chat.completions.create(model="assistant", messages=[])
    shell("%serve_stop")

def test_a_model_that_is_not_there(shell):
    with pytest.raises(ToolkitError, match="no language model"): shell("%%serve assistant --llm nowhere.gguf\npass")
    shell("assistant = 7")
    with pytest.raises(ToolkitError, match="has a variable assistant already"): shell(SERVE)
