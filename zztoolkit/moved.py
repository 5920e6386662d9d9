"""Names of modules before version 0.2. They work with a warning for one release.

An archive that was packed with an older version imports them too.
"""
import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import lazy_loader

# Where the names of an old module are now
MOVED = {
    "agreement": "vision.agreement",
    "answers": "offline.columns offline.parts offline.results",
    "artifact": "compile.artifact compile.compatibility compile.model_file compile.store compile.report",
    "bench": "measure.levels measure.bottleneck measure.results measure.plots measure.benchmarking measure.comparison",
    "bench_compile": "benchmarks.compile",
    "bench_frame": "benchmarks.features",
    "bench_tune": "benchmarks.tuning",
    "bench_vision": "benchmarks.vision",
    "columns": "features.columns features.keyed",
    "content": "compile.fingerprint",
    "core": "errors batch display system java diagnosis",
    "cpu": "vision.reading vision.progressive vision.cpu_kernels vision.cpu",
    "crew": "offline.worker offline.pool offline.model",
    "cuda": "vision.bridge vision.cuda_decode vision.cuda_kernels vision.cuda",
    "dashboard": "deploy.dashboard",
    "demo": "samples benchmarks.demo",
    "engines": "compile.backends.base compile.backends.export compile.backends.graphs compile.backends.eager compile.backends.torchscript compile.backends.inductor compile.backends.onnx compile.backends.openvino compile.backends.tensorrt compile.backends.registry",
    "feature_ops": "features.ops.base features.ops.encode features.ops.scale features.ops.target features.ops.join features.ops.sequences features.ops.custom features.ops.registry",
    "frame": "features.table features.features features.declaration features.fitting features.saving features.crossover features.ops.base features.ops.encode features.ops.scale features.ops.target features.ops.join features.ops.sequences features.ops.custom features.ops.registry",
    "front": "deploy.proxy_config deploy.proxy",
    "gpu_frame": "features.cudf",
    "image": "deploy.wheel deploy.image",
    "jpeg": "vision.jpeg",
    "ladder": "benchmarks.ladder",
    "load": "measure.profile measure.connections measure.sender measure.load",
    "magics": "notebook.versions notebook.cells notebook.source notebook.maker notebook.serve notebook.options notebook.arguments notebook.magics notebook.completion",
    "ops": "vision.ops vision.geometry vision.pixels vision.registry",
    "panel": "serving.torchserve.status notebook.panel.history notebook.panel.status notebook.panel.html notebook.panel.watch serving.reloading notebook.panel.panel notebook.panel.buttons notebook.panel.widgets",
    "parity": "compile.parity",
    "peers": "benchmarks.peer_kinds benchmarks.peers",
    "run": "deploy.pod_config deploy.verifying deploy.server deploy.pod deploy.probes",
    "sampling": "measure.gpu measure.resources",
    "schema": "features.fields features.series features.inference features.validation features.schema",
    "serve": "serving.torchserve.config folders serving.torchserve.api serving.torchserve.process serving.torchserve.logs serving.torchserve.server serving.torchserve.metrics serving.rollout serving.failures serving.endpoint serving.torchserve.running",
    "signing": "archive.signing",
    "sizing": "deploy.sizing",
    "soak": "benchmarks.soak",
    "sources": "offline.sources.base offline.sources.files offline.sources.tables offline.sources.csv offline.sources.opening",
    "tensors": "compile.signature",
    "tune": "measure.tuning.space measure.tuning.trials measure.tuning.search measure.tuning.runner measure.tuning.result measure.tuning.tuner",
}

# Names that have changed as well, or have left a module that is a package now: what is used instead
RENAMED = {
    "panel.panel": "notebook.panel.panel.show_panel",
    "archive.archive": "archive.packing.pack",
    "archive.reconfigured": "archive.reconfigure.with_config",
    "archive.packed": "archive.reconfigure.repack_folder",
    "archive.default_store": "archive.store.default_store",
    "schema.Door": "features.validation.Validated",
    "gpu_frame.gpu_door": "features.cudf.validate_on_gpu",
    "feature_ops.keyed": "features.ops.join.read_keyed_table",
    "artifact.alone": "system.file_lock",
    "artifact.bound_to": "compile.compatibility.hardware_tag",
    "artifact.made_with": "compile.compatibility.library_versions",
    "artifact.Evidence": "compile.report.CompileReport",
    "content.Contents": "compile.fingerprint.Canonicalizer",
    "content.structure": "compile.fingerprint.describe_model",
    "engines.BACKENDS": "compile.backends.registry.PROGRAM_BACKENDS",
    "engines.Engine": "compile.backends.base.Backend",
    "engines.ENGINES": "compile.backends.registry.BACKENDS",
    "engines.Job": "compile.backends.export.ExportJob",
    "engines.Loading": "compile.backends.base.LoadOptions",
    "tensors.Form": "compile.signature.CallSignature",
    "handler.to_body": "handler.wire.encode_request",
    "handler.from_body": "handler.wire.decode_request",
    "handler.encode": "handler.wire.encode_response",
    "handler.decode": "handler.wire.decode_response",
    "handler.existing": "handler.wire.require_file",
    "handler.in_one": "handler.rows.run_concatenated",
    "offline.Run": "offline.job.RunResult",
    "offline.refused": "offline.results.rejected",
    "offline.reasons": "offline.results.top_errors",
    "agreement.without_measuring": "vision.agreement.skip_measuring",
    "cpu.coarse_scans": "vision.progressive.drop_fine_scans",
    "cpu.orientation": "vision.reading.read_orientation",
    "cuda.cuda_kernel": "vision.cuda.cuda_step",
    "cuda.decode_rule": "vision.cuda_decode.make_rule",
    "cuda.why_not": "vision.bridge.unavailable_reason",
    "ops.op": "vision.ops.register",
    "vision.stack_rows": "vision.source.stack_arrays",
    "vision.TORCHVISION": "vision.convert.TORCHVISION",
    "vision.sample_photo": "samples.sample_photo",
    "magics.sources_of": "notebook.source.find_sources",
    "magics.module_for": "notebook.source.extract_module",
    "magics.tell_versions": "notebook.cells.add_versions",
    "magics.parsed": "notebook.options.parse_line",
    "magics.several": "notebook.options.comma_separated",
    "magics.read_by": "notebook.options.parse_with",
    "magics.new_file": "notebook.options.writable_file",
    "magics.typed_line": "notebook.completion.parse_typed_line",
    "magics.flags_of": "notebook.completion.suggest_flags",
    "magics.argument_at": "notebook.completion.find_argument",
    "magics.variables": "notebook.completion.suggest_variables",
    "magics.paths": "notebook.completion.suggest_paths",
    "panel.Watch": "notebook.panel.watch.Watcher",
    "panel.View": "notebook.panel.status.Snapshot",
    "panel.Seen": "notebook.panel.status.ModelView",
    "panel.Pace": "notebook.panel.status.Rates",
    "panel.pace": "notebook.panel.status.compute_rates",
    "panel.bound_of": "notebook.panel.status.quantile_bound",
    "panel.with_failure": "notebook.panel.status.add_failure",
    "panel.NewLines": "notebook.panel.status.LogTail",
    "panel.binned": "notebook.panel.history.bin_means",
    "panel.pause": "notebook.panel.panel.poll_interval",
    "panel.answer_html": "notebook.panel.html.response_html",
    "panel.tell": "notebook.panel.html.error_html",
    "panel.amount": "notebook.panel.html.format_number",
    "panel.duration": "notebook.panel.html.format_duration",
    "panel.mebibytes": "notebook.panel.html.format_memory",
    "panel.body_of": "notebook.panel.html.parse_file",
    "serve.Counted": "serving.torchserve.metrics.ModelMetrics",
    "serve.counted": "serving.torchserve.metrics.parse_metrics",
    "serve.Management": "serving.torchserve.api.ManagementClient",
    "serve.lay_out": "serving.torchserve.config.write_server_files",
    "serve.properties": "serving.torchserve.config.format_properties",
    "serve.exit_codes": "serving.torchserve.config.read_exit_codes",
    "serve.log_config": "serving.torchserve.config.format_log_config",
    "serve.worker_script": "serving.torchserve.config.format_worker_script",
    "serve.tail": "serving.torchserve.logs.tail_log",
    "serve.worker_log": "serving.torchserve.logs.read_worker_log",
    "serve.printed_by": "serving.torchserve.logs.lines_of_model",
    "serve.tracebacks": "serving.torchserve.logs.find_tracebacks",
    "serve.exit_words": "serving.torchserve.logs.describe_exit_code",
    "serve.why_worker_died": "serving.torchserve.logs.worker_failure_reason",
    "serve.end_java": "serving.torchserve.process.kill_java",
    "serve.NOT_DRAINED": "serving.torchserve.process.EXIT_NOT_DRAINED",
    "serve.PredictionError": "serving.failures.PredictionError",
    "serve.error_of": "serving.failures.build_error",
    "serve.one_line_interrupts": "serving.failures.one_line_interrupts",
    "panel.Service": "serving.torchserve.status.ModelStatus",
    "panel.service": "serving.torchserve.status.parse_status",
    "panel.services": "serving.torchserve.status.read_statuses",
    "panel.unpacked": "serving.torchserve.files.find_unpacked",
    "panel.renewed": "serving.reloading.repack_running",
    "panel.start_again": "serving.reloading.restart",
    "bench.bench": "measure.benchmarking.benchmark",
    "bench.Level": "measure.levels.LoadLevel",
    "bench.Pressed": "measure.levels.Benchmarkable",
    "bench.measure": "measure.levels.measure_level",
    "bench.steady": "measure.levels.is_steady",
    "bench.window": "measure.levels.summarize_window",
    "bench.stage_times": "measure.levels.split_latency",
    "bench.seconds_of": "measure.levels.parse_duration",
    "bench.numbers_of": "measure.levels.parse_numbers",
    "bench.target_of": "measure.levels.resolve_target",
    "bench.Verdict": "measure.bottleneck.Bottleneck",
    "bench.verdict": "measure.bottleneck.find_bottleneck",
    "bench.others": "measure.bottleneck.other_processes_cores",
    "bench.CROWD": "measure.bottleneck.NOISE_CORES",
    "bench.setup_of": "measure.benchmarking.describe_setup",
    "bench.save_record": "measure.records.save_record",
    "bench.load_record": "measure.records.load_record",
    "load.Load": "measure.load.LoadGenerator",
    "load.Plan": "measure.profile.LoadProfile",
    "load.Sent": "measure.load.Responses",
    "load.closed": "measure.profile.closed_loop",
    "load.payloads": "measure.profile.read_payloads",
    "load.send_for": "measure.load.send_load",
    "load.check_grpc": "measure.connections.require_grpc",
    "load.grpc_message": "serving.torchserve.grpc.encode_grpc_request",
    "sampling.Sampler": "measure.resources.ResourceMonitor",
    "sampling.usage": "measure.resources.summarize_samples",
    "sampling.gpu_counters": "measure.gpu.read_gpu_counters",
    "tune.Knob": "measure.tuning.space.Parameter",
    "tune.Space": "measure.tuning.space.SearchSpace",
    "tune.knob_of": "measure.tuning.space.parse_parameter",
    "tune.space_of": "measure.tuning.space.build_space",
    "tune.Tried": "measure.tuning.trials.Trial",
    "tune.Stand": "measure.tuning.runner.TrialRunner",
    "tune.Tuning": "measure.tuning.result.TuneResult",
    "tune.best_of": "measure.tuning.trials.best_trials",
    "tune.costs_of": "measure.tuning.trials.estimate_costs",
    "tune.guess": "measure.tuning.trials.predict_throughput",
    "tune.first_settings": "measure.tuning.trials.warm_start",
    "tune.study_in": "measure.tuning.search.open_study",
    "tune.mebibytes_of": "measure.tuning.tuner.parse_memory",
    "core.Finding": "diagnosis.Check",
    "core.ending": "system.describe_exit",
    "serve.own_folder": "folders.create_owned_folder",
    "deploy.told": "deploy.helm.describe_model",
    "deploy.told_image": "deploy.rendering.image_reference",
    "deploy.set_of": "deploy.rendering.archive_set_digest",
    "deploy.image_values": "deploy.rendering.parse_image",
    "image.image_context": "deploy.image.write_image_context",
    "front.Front": "deploy.proxy.Proxy",
    "run.Pod": "deploy.pod_config.PodConfig",
    "run.Wanted": "deploy.pod_config.ModelRef",
    "run.wanted": "deploy.pod_config.parse_models",
    "run.Taken": "deploy.verifying.VerifiedArchive",
    "run.take_in": "deploy.verifying.verify_archive",
    "run.take_all": "deploy.verifying.verify_all",
    "run.run": "deploy.pod.run_pod",
    "sizing.Measured": "deploy.sizing.ReplicaProfile",
    "sizing.Terms": "deploy.sizing.Assumptions",
    "sizing.Size": "deploy.sizing.ClusterSize",
    "sizing.size": "deploy.sizing.size_cluster",
    "sizing.bends": "deploy.sizing.scaling_limits",
    "sizing.table": "deploy.sizing.sizing_table",
}


def renamed(module: str, name: str):
    "Return what `name` of an old module is now; None for a name that has not changed"
    new = RENAMED.get(f"{module}.{name}")
    if not new: return None
    place, _, attribute = new.rpartition(".")
    warnings.warn(
        f"zztoolkit.{module}.{name} is now zztoolkit.{new}; the old name goes with the next release",
        DeprecationWarning, stacklevel=3,
    )
    return getattr(import_module(f"zztoolkit.{place}"), attribute)


def attach_names(package: str, file: str):
    "Return a package's `__getattr__`, `__dir__` and `__all__`: the names of its `__init__.pyi`, imported when they are first used"
    stub_name, names, public = lazy_loader.attach_stub(package, file)

    def attribute(name: str):
        try: return stub_name(name)
        except AttributeError:
            value = renamed(package.partition(".")[2], name)
            if value is None: raise
            return value

    return attribute, names, public


class MovedModule(ModuleType):
    "A module by its old name; its attributes are looked up where they are now"

    def __getattr__(self, name: str):
        if name.startswith("__"): raise AttributeError(name)
        old = self.__name__.partition(".")[2]
        value = renamed(old, name)
        if value is not None: return value
        for new in MOVED[old].split():
            module = import_module(f"zztoolkit.{new}")
            if name in vars(module): return vars(module)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class MovedFinder(MetaPathFinder, Loader):
    "Find modules by their old names"

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.partition(".")
        if package != "zztoolkit" or name not in MOVED: return None
        first = MOVED[name].split()[0]
        warnings.warn(
            f"{fullname} is now zztoolkit.{first}; the old name goes with the next release",
            DeprecationWarning, stacklevel=3,
        )
        return ModuleSpec(fullname, self)

    def create_module(self, spec): return MovedModule(spec.name)

    def exec_module(self, module): pass


def install():
    "Let the old names be imported"
    if not any(isinstance(f, MovedFinder) for f in sys.meta_path):
        sys.meta_path.append(MovedFinder())
