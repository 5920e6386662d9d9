"vLLM's server, started and ended as ours: here by a script in its place, on a GPU by vLLM itself"
from __future__ import annotations

import os, sys
from pathlib import Path

import psutil, pytest

from support.llms import kill_owner_of
from support.pods import wait_until
from zztoolkit.errors import ToolkitError
from zztoolkit.llm import LLMServer
from zztoolkit.llm.engines import ServiceOptions
from zztoolkit.llm.vllm import launch, vllm_command
from zztoolkit.llm.model import find_model
from zztoolkit.serving import Settings
from zztoolkit.serving.failures import PredictionError

FAKE = Path(__file__).parent / "fake_vllm.py"

@pytest.fixture
def weights(tmp_path):
    "A folder that looks like one of safetensors"
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 2048}')
    (folder / "model.safetensors").touch()
    return folder

@pytest.fixture
def fake(tmp_path, monkeypatch):
    "Put the script on PATH under vLLM's name; `fake(how)` says how it behaves"
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {FAKE} \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return lambda how: monkeypatch.setenv("HOW", how)

def server(weights, **settings) -> LLMServer:
    return LLMServer(weights, "llama", "vllm", Settings(**{"drain_timeout": 1, "startup_timeout": 30} | settings))

def test_its_command_and_environment(weights, tmp_path):
    options = ServiceOptions("llama", 8123, context_length=1024, max_active=4, drain_timeout=7, token="secret")
    assert vllm_command("vllm", weights, options) == (
        "vllm", "serve", str(weights), "--host", "127.0.0.1", "--port", "8123", "--served-model-name", "llama",
        "--max-num-seqs", "4", "--max-model-len", "1024", "--shutdown-timeout", "7")
    started = launch(find_model(weights), options, tmp_path)
    assert started.environment["VLLM_API_KEY"] == "secret" and "secret" not in " ".join(started.command)
    assert "secret" not in repr(started)

def test_it_is_awaited_asked_and_stopped(weights, fake):
    fake("good")
    with server(weights) as llm:
        answer = llm.chat("What is the capital of France?", show=False)
        assert (answer, answer.finish_reason) == ("The capital is Paris.", "stop")
        assert llm.status().active == 2
        processes = [psutil.Process(llm.process.pid), *psutil.Process(llm.process.pid).children(recursive=True)]
        assert llm.stop()
    assert len(processes) == 2 and not any(p.is_running() for p in processes)
    assert not llm.folder.exists()

def test_a_crash_shows_its_last_words(weights, fake):
    fake("crash")
    with pytest.raises(ToolkitError, match="No available memory"): server(weights).start()

def test_a_start_that_takes_too_long(weights, fake):
    fake("good")
    with pytest.raises(ToolkitError, match="not ready after"): server(weights).start(timeout=0.3)

@pytest.mark.slow
@pytest.mark.parametrize("how, message", [("error", "500 Error: EngineCore"), ("cut", "cut off")])
def test_an_answer_that_fails_is_an_error(weights, fake, how, message):
    fake(how)
    with server(weights) as llm, pytest.raises(PredictionError, match=message):
        llm.chat("What is the capital of France?", show=False)

@pytest.mark.slow
def test_one_that_ignores_sigterm_is_killed(weights, fake):
    fake("hang")
    llm = server(weights).start()
    processes = psutil.Process(llm.process.pid).children(recursive=True)
    with pytest.warns(UserWarning, match="stopped with requests in flight"): assert not llm.stop()
    assert processes and not any(p.is_running() for p in processes)

@pytest.mark.slow
def test_it_ends_with_its_owner(weights, fake):
    fake("hang")        # not even SIGTERM would end it
    pids = kill_owner_of(f"LLMServer({str(weights)!r}, 'llama', 'vllm', Settings(drain_timeout=1))", 60)
    assert len(pids) == 2
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), 40)     # the drain, and what a busy machine adds

def test_without_it_the_error_says_what_to_do(weights, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolkitError, match="vllm is not installed"): LLMServer(weights, engine="vllm")
    with pytest.raises(ToolkitError, match="optimum-cli export openvino"): LLMServer(weights, engine="openvino")
    with pytest.raises(ToolkitError, match="no such engine"): LLMServer(weights, engine="llama.cpp")

@pytest.mark.gpu
def test_vllm_itself():
    "ZZ_LLM: a folder of safetensors; vllm on PATH"
    folder = os.environ.get("ZZ_LLM")
    if not folder: pytest.skip("ZZ_LLM names no folder of safetensors")
    with LLMServer(folder, engine="vllm") as llm:
        assert llm.engine == "vllm"
        assert "Paris" in llm.chat("What is the capital of France?", max_tokens=32, show=False)
        assert llm.status().tokens > 0
