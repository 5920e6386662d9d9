"""Find the ways in which an AOTInductor package loads in a fresh process, and where it fails.

    aoti.py                     compile a package, then try each way in a process of its own
    aoti.py compile FILE        compile only
    aoti.py load FILE WORDS...  load it in one way (see WAYS) and run a batch

A process that hangs is looked at by py-spy, if that is installed; one that crashes prints the C
functions that it was in.
"""
from __future__ import annotations

import contextlib, ctypes, faulthandler, json, os, subprocess, sys, tempfile, threading, time
from pathlib import Path

from common import HOME, finding, report, run_fresh
from models import NETWORKS, example_inputs

BATCH, ROWS = (1, 8, 32), 32
LIMIT, LOOK_AFTER = 40, 22      # seconds of a way, and until a process that hangs is looked at

# Words of each way. What the project does comes first
WAYS = (
    ("single", "device"),                   # one thread, so that it can be captured; a device by number
    ("single", "device", "graph"),
    ("cuda first", "single", "device"),
    (),                                     # as PyTorch's documentation shows
    ("cuda first",),
    ("eager modules", "single", "device"),  # CUDA_MODULE_LOADING=EAGER
)

BACKTRACE = r"""
#include <execinfo.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void on_signal(int n) {
    void *frames[60];
    static const char title[] = "C functions, innermost first:\n";
    if (write(2, title, sizeof title - 1) < 0) _exit(1);
    backtrace_symbols_fd(frames, backtrace(frames, 60), 2);
    signal(n, SIG_DFL);
    raise(n);
}
void print_at(int n) {
    stack_t stack = {malloc(1 << 18), 0, 1 << 18};
    sigaltstack(&stack, 0);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    sigaction(n, &action, 0);
}
"""


def print_c_functions_at(*signals: int):
    "Have a crash print the C functions that it happened in; it needs a C compiler"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "print_at.c"), Path(folder, "print_at.so")
        source.write_text(BACKTRACE)
        command = ["gcc", "-shared", "-fPIC", "-O1", source, "-o", library]
        if subprocess.run(command, capture_output=True).returncode: return
        print_at = ctypes.CDLL(str(library)).print_at
    for n in signals: print_at(n)


def look_after(seconds: float):
    "Print where every thread of this process is, C functions included, if it still runs by then"
    def look():
        time.sleep(seconds)
        command = ["py-spy", "dump", "--native", "--pid", str(os.getpid())]
        with contextlib.suppress(OSError):
            done = subprocess.run(command, capture_output=True, text=True)
            print(done.stdout or done.stderr, file=sys.stderr, flush=True)
    threading.Thread(target=look, daemon=True).start()


def compile_package(file: str):
    import torch
    from torch.export import Dim
    with finding("compiled") as found:
        model = NETWORKS["lite0"]().cuda()
        rows = example_inputs("lite0", BATCH[1]).cuda()
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        with torch.no_grad():
            batch = Dim("batch", min=BATCH[0], max=BATCH[-1])
            program = torch.export.export(model, (rows,), dynamic_shapes=({0: batch},))
            torch._inductor.aoti_compile_and_package(program, package_path=file)
        found["mib"] = Path(file).stat().st_size >> 20


def load_package(file: str, *words: str):
    "Load, run a batch, and print how long each took"
    faulthandler.enable()
    print_c_functions_at(6, 7, 8, 11)       # SIGABRT, SIGBUS, SIGFPE, SIGSEGV
    look_after(LOOK_AFTER)
    if "eager modules" in words: os.environ["CUDA_MODULE_LOADING"] = "EAGER"
    import torch
    imported = time.perf_counter()
    x = torch.zeros(8, 3, 224, 224)
    if "cuda first" in words:
        x = x.cuda()
        torch.cuda.synchronize()
    options = {"run_single_threaded": True} if "single" in words else {}
    if "device" in words: options["device_index"] = 0
    print("loading", file=sys.stderr, flush=True)
    model = torch._inductor.aoti_load_package(file, **options)
    loaded = time.perf_counter()
    print("loaded; running", file=sys.stderr, flush=True)
    x = x.cuda()
    with torch.no_grad():
        if "graph" in words: run_graph(model, x)
        else: model(x)
    torch.cuda.synchronize()
    ran = time.perf_counter()
    print(json.dumps({"load_s": round(loaded - imported, 2), "batch_s": round(ran - loaded, 2)}))


def run_graph(model, x):
    "Capture one batch as a CUDA graph, and replay it"
    import torch
    from zztoolkit.compile.backends.graphs import capture_graph
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    graph, _, _ = capture_graph(lambda xs: [model(*xs)], [x], stream, pool)
    graph.replay()


def main():
    file = HOME / "aoti" / "lite0.pt2"
    file.parent.mkdir(parents=True, exist_ok=True)
    ended = run_fresh(Path(__file__), "compile", str(file), limit=120)
    if not file.exists(): return report("aoti", error=ended["outcome"], log=ended["log"])
    for words in WAYS:
        ended = run_fresh(Path(__file__), "load", str(file), *words, limit=LIMIT)
        printed, log = ended.pop("printed"), ended.pop("log")
        times = json.loads(printed.splitlines()[-1]) if ended["outcome"] == "ok" else {"log": log}
        report("load", how=", ".join(words) or "as documented", **ended, **times)


RUNS = {"compile": compile_package, "load": load_package}

if __name__ == "__main__":
    if sys.argv[1:]: RUNS[sys.argv[1]](*sys.argv[2:])
    else: main()
