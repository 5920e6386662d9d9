"""For each alert: what goes wrong, and when it is over, as `promtool test rules` reads it.

A day is played in minutes. Series are written as promtool's `start+step x times` and `_`; those of a healthy release of two replicas lie under them.
"""
OF = 'namespace="shop",service="film-zztoolkit-metrics"'
PODS = ("film-zztoolkit-6d5f9c7b84-x2lkp", "film-zztoolkit-6d5f9c7b84-q9wzt")


def of(pod: str, labels: str = "") -> str: return f'{{{OF},pod="{pod}"{"," if labels else ""}{labels}}}'

def counter(name: str, labels: str, *phases: tuple[int, float], pod: str = PODS[0]) -> dict:
    "A counter that grows by so much a minute, phase by phase (minutes, step)"
    at, values = 0.0, []
    for minutes, step in phases:
        values.append(f"{at:g}+{step:g}x{minutes - 1}")
        at += step * minutes
    return dict(series=f"{name}{of(pod, labels)}", values=" ".join(values))

def gauge(name: str, labels: str, *phases: tuple[int, float | str], pod: str = PODS[0]) -> dict:
    "A gauge that stands at a value, phase by phase (minutes, value; `_` is absence)"
    return dict(series=f"{name}{of(pod, labels)}", values=" ".join(f"{v}x{m}" if v == "_" else f"{v}+0x{m - 1}" for m, v in phases))

MODEL, VERSION = 'model_name="classifier"', 'model_name="classifier",model_version="1.0"'
CPU = f'namespace="shop",pod="{PODS[0]}",container="server"'
GPU = f'exported_namespace="shop",exported_pod="{PODS[0]}",gpu="0"'

def plain(name: str, labels: str, values: str) -> dict: return dict(series=f"{name}{{{labels}}}", values=values)


# alert: (series, minute at which it must be silent still, minute at which it must fire, minute at which it must be silent again)
ALERTS = {
    "ZzErrorBudgetBurnsFast": ([counter("zz_responses_total", 'code="2xx"', (60, 600), (30, 500), (450, 600)), counter("zz_responses_total", 'code="5xx"', (60, 0), (30, 100), (450, 0))], 55, 85, 200),
    "ZzErrorBudgetBurnsSlowly": ([counter("zz_responses_total", 'code="2xx"', (60, 600), (900, 598), (600, 600)), counter("zz_responses_total", 'code="5xx"', (60, 0), (900, 2), (600, 0))], 55, 900, 1500),
    "ZzLatencyOverObjective": ([counter("zz_request_seconds_bucket", MODEL + f',le="{le}"', (30, within), (30, then), (60, within)) for le, within, then in (("0.5", 60, 57), ("1", 60, 58), ("2", 60, 60), ("+Inf", 60, 60))], 29, 55, 80),
    "ZzQueueGrows": ([counter("ts_inference_requests_total", MODEL, (120, 60)), counter("ts_queue_latency_microseconds", MODEL, (30, 60 * 1e4), (30, 60 * 5e5), (60, 60 * 1e4))], 29, 50, 80),
    "ZzFirstTokenLate": ([counter("zz_llm_time_to_first_token_seconds_bucket", f'le="{le}"', (30, within), (30, then), (60, within)) for le, within, then in (("1", 60, 50), ("2", 60, 54), ("5", 60, 60), ("+Inf", 60, 60))], 29, 55, 80),
    "ZzFirstTokenLate, of vLLM": ([counter("vllm:time_to_first_token_seconds_bucket", f'model_name="assistant",le="{le}"', (30, within), (30, then), (60, within)) for le, within, then in (("1", 60, 50), ("2.5", 60, 54), ("5", 60, 60), ("+Inf", 60, 60))], 29, 55, 80),
    "ZzQueueNearlyFull": ([gauge("zz_queued_requests", VERSION, (30, 3), (10, 90), (30, 0))], 29, 35, 45),
    "ZzNothingServes": ([gauge("zz_ready", "", (30, 1), (15, 0), (30, 1))], 29, 38, 50),
    # Every replica starts, dies and starts again: each is up for a minute in five.
    "ZzNothingServes, though something is up at times": ([gauge(name, labels, (30, 1), *[p for _ in range(8) for p in ((4, "_"), (1, starts))], (30, 1)) for name, labels, starts in (("zz_ready", "", 0), ("up", "", 1))], 29, 60, 85),
    "ZzModelDown": ([gauge("zz_ready_workers", VERSION, (30, 2), (10, 0), (30, 2))], 29, 35, 45),
    "ZzModelDoesNotLoad": ([counter("zz_model_load_failures_total", MODEL, (30, 0), (5, 1), (60, 0))], 29, 33, 60),
    "ZzWorkersMissing": ([gauge("zz_ready_workers", VERSION, (30, 2), (10, 1), (30, 2)), gauge("zz_wanted_workers", VERSION, (70, 2)), gauge("zz_in_service", "", (70, 1))], 29, 36, 45),
    "ZzWorkersDie": ([counter("zz_worker_exits_total", 'code="137"', (30, 0), (10, 1), (60, 0))], 29, 38, 70),
    "ZzVersionsDiffer": ([gauge("zz_model_info", VERSION + ',digest="a"', (200, 1)), gauge("zz_model_info", VERSION + ',digest="a"', (30, 1), (70, "_"), (100, 1), pod=PODS[1]), gauge("zz_model_info", VERSION + ',digest="b"', (30, "_"), (70, 1), (100, "_"), pod=PODS[1])], 60, 95, 130),
    "ZzNothingScraped": ([gauge("up", "", (30, 1), (30, 0), (30, 1))], 29, 50, 70),
    "ZzGpuWaitsForCpu": ([plain("DCGM_FI_DEV_GPU_UTIL", GPU, "80+0x29 20+0x59 80+0x59"), plain("container_cpu_usage_seconds_total", CPU, "0+234x150"), plain("kube_pod_container_resource_limits", CPU + ',resource="cpu"', "4+0x150")], 29, 60, 110),
    # A draining replica has no workers in the end: that is no alarm.
    "ZzWorkersMissing, but it drains": ([gauge("zz_ready_workers", VERSION, (30, 2), (10, 0)), gauge("zz_wanted_workers", VERSION, (40, 2)), gauge("zz_in_service", "", (30, 1), (10, 0))], 29, None, 39),
    # Under MIG there is only the engine's activity, in shares.
    "ZzGpuWaitsForCpu under MIG": ([plain("DCGM_FI_PROF_GR_ENGINE_ACTIVE", GPU + ',GPU_I_ID="3"', "0.8+0x29 0.2+0x59 0.8+0x59"), plain("container_cpu_usage_seconds_total", CPU, "0+234x150"), plain("kube_pod_container_resource_limits", CPU + ',resource="cpu"', "4+0x150")], 29, 60, 110),
}


def rule_tests(rules_file: str, alerts: dict) -> dict:
    "Histories as promtool's file"
    def firing(alert: str, minute: int, yes: bool) -> dict:
        return dict(expr=f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})', eval_time=f"{minute}m", exp_samples=[dict(labels="{}", value=1)] if yes else [])

    def test(title: str) -> dict:
        series, before, during, after = alerts[title]
        alert = title.split(",")[0].split()[0]
        asked = [firing(alert, before, False), *([firing(alert, during, True)] if during else []), firing(alert, after, False)]
        return dict(name=title, interval="1m", input_series=series, promql_expr_test=asked)
    return dict(rule_files=[rules_file], evaluation_interval="1m", tests=[test(t) for t in alerts])
