"What the tests of language models share"
from __future__ import annotations

import subprocess, sys

import openai, pytest

from support.pods import wait_until

STORY = [{"role": "user", "content": "Tell me a long story about a wolf."}]


def is_idle(llm) -> bool: return llm.status().active == llm.status().waiting == 0

def check_place_is_freed(llm, client, chat):
    "Leave a stream, and an answer, in the middle: assert that each frees its place within a second"
    stream = chat(client, STORY, max_tokens=5000, stream=True)
    next(iter(stream))
    assert llm.status().active == 1
    stream.close()
    wait_until(lambda: is_idle(llm), 1)
    with pytest.raises(openai.APITimeoutError): chat(client.with_options(timeout=0.5), STORY, max_tokens=5000)
    wait_until(lambda: is_idle(llm), 1)

def kill_owner_of(server: str, timeout: float) -> list[int]:
    "Start a server, an expression, in a process that kills itself then; return the ids of the server's processes"
    code = ("from zztoolkit.llm import LLMServer; from zztoolkit.serving import Settings; import os, signal, psutil\n"
            f"llm = {server}.start()\n"
            "print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)
    return list(map(int, done.stdout.split()))
