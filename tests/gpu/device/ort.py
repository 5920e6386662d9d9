"""Try ONNX Runtime's CUDA provider (part C): does it load and agree, and how fast is it?"""
from __future__ import annotations

from pathlib import Path
from typing import Any

from common import ENGINES, finding, gpu_ms, report
from models import example_inputs, load_lite0

CPU_ARTIFACT = ENGINES / "lite0-fp32-onnxruntime-cpu"     # for its model.onnx
OPTIONS = ({"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"},
           {"use_tf32": 1, "cudnn_conv_algo_search": "HEURISTIC"},
           {"use_tf32": 1, "cudnn_conv_algo_search": "EXHAUSTIVE"},
           {"use_tf32": 1, "cudnn_conv_algo_search": "HEURISTIC", "enable_cuda_graph": 1})


def compile_for(device: str, folder: Path, rows: Any, **options: Any):
    from zztoolkit.compile.compiler import compile_model
    with finding("compile_model", backend="onnxruntime", device=device) as found:
        artifact = compile_model(
            load_lite0(), rows[:8], backend="onnxruntime", device=device, batch=(1, 8, 32),
            path=folder, measure=False, **options)
        found["artifact"] = repr(artifact)


def bind(session: Any, x: Any, y: Any) -> Any:
    "Inputs and outputs by their addresses on the GPU"
    import numpy as np
    binding, [source], [target] = session.io_binding(), session.get_inputs(), session.get_outputs()
    binding.bind_input(source.name, "cuda", 0, np.float32, tuple(x.shape), x.data_ptr())
    binding.bind_output(target.name, "cuda", 0, np.float32, tuple(y.shape), y.data_ptr())
    return binding


def measure(options: dict[str, Any], rows: Any, want: Any):
    "One set of options, on a stream of torch, at each batch that it can"
    import onnxruntime, torch
    with finding("session", **options) as found:
        stream, run_options = torch.cuda.Stream(), onnxruntime.RunOptions()
        run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        provider = options | {"device_id": 0, "user_compute_stream": str(stream.cuda_stream)}
        providers = [("CUDAExecutionProvider", provider)]
        session = onnxruntime.InferenceSession(CPU_ARTIFACT / "model.onnx", providers=providers)
        found["providers"] = session.get_providers()
        for batch in (8,) if "enable_cuda_graph" in options else (1, 8, 32):
            x, y = rows[:batch].cuda().contiguous(), torch.empty(batch, 1000, device="cuda")
            binding = bind(session, x, y)
            def call(): session.run_with_iobinding(binding, run_options)
            with torch.cuda.stream(stream): found[f"batch {batch}"] = gpu_ms(call, seconds=0.3)
            stream.synchronize()
            found[f"largest {batch}"] = float((y[:1].cpu() - want).abs().max() / want.abs().max())


def main():
    import onnxruntime, torch
    available = onnxruntime.get_available_providers()
    report("providers", available=available, version=onnxruntime.__version__)
    rows = example_inputs("lite0", 32)
    compile_for("cuda", ENGINES / "lite0-fp32-onnxruntime", rows, tolerance=0.05)
    compile_for("cpu", CPU_ARTIFACT, rows)
    with torch.no_grad(): want = load_lite0()(rows[:1])
    for options in OPTIONS: measure(options, rows, want)


if __name__ == "__main__": main()
