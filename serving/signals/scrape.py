"""Runtimes' own metrics, from their ``/metrics`` pages (Prometheus' text format).

A gauge says how many requests wait or run. Where a runtime only counts microseconds spent, the mean
number of requests in that state is their growth per second (Little's law). A number that a page
lacks stays unknown, and never counts against the endpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from yarl import URL

from trainmesh.serving.config.types import Config, EndpointConfig, Runtime
from trainmesh.serving.signals.fetch import Fetcher, root_of
from trainmesh.serving.signals.poller import Poller

__all__ = [
    "PAGES",
    "Page",
    "EngineLoad",
    "Scraped",
    "Scraper",
    "Source",
    "metrics_url",
    "read_page",
]

TIMEOUT_S = 1.0
MAX_WAIT_S = 30.0
"""Pause after pages that are not there; it doubles from the interval to this."""
PORTS = {Runtime.TRITON: 8002, Runtime.TORCHSERVE: 8082}
"""Where runtimes have their metrics unless told otherwise, if not on the port of their API."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Requests waiting and running, and the part of the KV cache in use; ``at_s``: when, 0 for
    never (monotonic)."""

    queued: int = 0
    running: int = 0
    kv_use: float = 0.0
    at_s: float = 0.0


class Source(NamedTuple):
    """A metric, and labels that its series must have. ``per_s``: a counter whose growth per second
    counts; ``scale`` is multiplied by."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    per_s: bool = False
    scale: float = 1.0


class Page(NamedTuple):
    """For each number the sources it may come from; the first that a page has is taken."""

    queued: tuple[Source, ...] = ()
    running: tuple[Source, ...] = ()
    kv_use: tuple[Source, ...] = ()


def _us(name: str) -> Source:
    return Source(name, per_s=True, scale=1e-6)


VLLM = Page(
    queued=(Source("vllm:num_requests_waiting"),),
    running=(Source("vllm:num_requests_running"),),
    kv_use=(Source("vllm:kv_cache_usage_perc"), Source("vllm:gpu_cache_usage_perc")),
)
SGLANG = Page(
    queued=(Source("sglang:num_queue_reqs"),),
    running=(Source("sglang:num_running_reqs"),),
    kv_use=(Source("sglang:token_usage"),),
)
TGI = Page(queued=(Source("tgi_queue_size"),), running=(Source("tgi_batch_current_size"),))
LLAMACPP = Page(
    queued=(Source("llamacpp:requests_deferred"),),
    running=(Source("llamacpp:requests_processing"),),
    kv_use=(Source("llamacpp:kv_cache_usage_ratio"),),
)
TRT_LLM = "nv_trt_llm_request_metrics"
TRITON = Page(
    queued=(
        Source(TRT_LLM, (("request_type", "waiting"),)),
        *VLLM.queued,
        Source("nv_inference_pending_request_count"),
        _us("nv_inference_queue_duration_us"),
    ),
    running=(
        Source(TRT_LLM, (("request_type", "scheduled"),)),
        *VLLM.running,
        _us("nv_inference_compute_infer_duration_us"),
    ),
    kv_use=(
        Source("nv_trt_llm_kv_cache_block_metrics", (("kv_cache_block_type", "fraction"),)),
        *VLLM.kv_use,
    ),
)
OVMS = Page(
    queued=(_us("ovms_wait_for_infer_req_time_us_sum"),),
    running=(Source("ovms_current_requests"), Source("ovms_current_graphs")),
)
TORCHSERVE = Page(
    queued=(_us("ts_queue_latency_microseconds"),),
    running=(_us("ts_inference_latency_microseconds"),),
)
ANY = Page(*(sum(parts, ()) for parts in zip(VLLM, SGLANG, TGI, LLAMACPP, strict=True)))
"""Of a server that is only known to speak OpenAI's API."""
PAGES: Mapping[Runtime, Page] = {
    Runtime.OPENAI: ANY,
    Runtime.VLLM: VLLM,
    Runtime.SGLANG: SGLANG,
    Runtime.TGI: TGI,
    Runtime.LLAMACPP: LLAMACPP,
    Runtime.TORCHSERVE: TORCHSERVE,
    Runtime.TRITON: TRITON,
    Runtime.KSERVE: VLLM,  # its Hugging Face runtime runs vLLM
    Runtime.OVMS: OVMS,
}


@dataclass(frozen=True, slots=True)
class Scraped:
    """A report, and the counters that the next one is compared with."""

    report: EngineLoad = field(default_factory=EngineLoad)
    totals: Mapping[Source, float] = field(default_factory=dict)
    at_s: float = 0.0


def read_page(page: Page, text: str, now_s: float, before: Scraped) -> Scraped:
    """What ``text`` says; ``before`` is what the same endpoint said last.

    Raises:
        ValueError: it is not in Prometheus' text format.
    """
    samples = _samples(text, {source.name for sources in page for source in sources})
    reader = _Reader(samples, before, now_s)
    queued, running = reader.first(page.queued, sum), reader.first(page.running, sum)
    kv_use = reader.first(page.kv_use, max)
    report = before.report
    if (queued, running, kv_use) != (None, None, None):
        report = EngineLoad(
            queued=_count(queued),
            running=_count(running),
            kv_use=min(1.0, max(0.0, kv_use or 0.0)),
            at_s=now_s,
        )
    return Scraped(report, reader.totals, now_s)


def _count(value: float | None) -> int:
    return round(min(1e9, max(0.0, value or 0.0)))


def _samples(text: str, wanted: set[str]) -> list[Sample]:
    """Only lines that are wanted are parsed: histograms make up most of a page."""
    starts = tuple(wanted)
    lines = [line for line in text.splitlines() if line.startswith(starts)]
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return [
        sample
        for family in families
        for sample in family.samples
        if sample.name in wanted and math.isfinite(sample.value)
    ]


class _Reader:
    """Looks sources up in one page."""

    def __init__(self, samples: list[Sample], before: Scraped, now_s: float) -> None:
        self._samples = samples
        self._before = before
        self._now_s = now_s
        self.totals: dict[Source, float] = {}

    def first(
        self, sources: Iterable[Source], together: Callable[[list[float]], float]
    ) -> float | None:
        """The first source that the page has; its series taken ``together``."""
        for source in sources:
            values = [s.value for s in self._samples if _is_of(s, source)]
            if values:
                value = together(values) * source.scale
                return self._growth_per_s(source, value) if source.per_s else value
        return None

    def _growth_per_s(self, source: Source, total: float) -> float | None:
        """None the first time, and when the counter began anew."""
        self.totals[source] = total
        passed_s = self._now_s - self._before.at_s
        grown = total - self._before.totals.get(source, math.inf)
        return grown / passed_s if grown >= 0 and passed_s > 0 else None


def _is_of(sample: Sample, source: Source) -> bool:
    return sample.name == source.name and all(
        sample.labels.get(label) == value for label, value in source.labels
    )


def metrics_url(endpoint: EndpointConfig) -> URL:
    """Where an endpoint's page is."""
    if endpoint.metrics:
        return URL(endpoint.metrics)
    root = root_of(endpoint.url)
    port = PORTS.get(endpoint.runtime)
    if port is not None:
        return root.with_port(port).with_path("/metrics")
    return root.with_path(root.path.rstrip("/") + "/metrics", encoded=True)


class Scraper:
    """Keeps ``scraped`` (by URL) up to date."""

    def __init__(self, fetcher: Fetcher) -> None:
        self.scraped: dict[str, Scraped] = {}
        self._fetcher = fetcher
        self._rounds = Poller(self._scrape)
        self._interval_s = 1.0
        self._waits_s: dict[str, float] = {}

    def update(self, config: Config) -> None:
        """Ask the endpoints of ``config`` from now on."""
        self._interval_s = config.telemetry.scrape_interval_s
        models = config.models.values() if config.telemetry.scrape else ()
        gone = self._rounds.update(endpoint for model in models for endpoint in model.endpoints)
        for url in gone:
            self.scraped.pop(url, None)
            self._waits_s.pop(url, None)

    def reports(self) -> dict[str, EngineLoad]:
        return {url: one.report for url, one in self.scraped.items()}

    async def close(self) -> None:
        await self._rounds.close()

    async def _scrape(self, endpoint: EndpointConfig) -> float:
        url = endpoint.url
        answer = await self._fetcher.get(endpoint, metrics_url(endpoint), TIMEOUT_S)
        before = self.scraped.get(url, Scraped())
        if answer.status == 200:
            text = answer.body.decode(errors="replace")
            try:
                after = read_page(PAGES[endpoint.runtime], text, time.monotonic(), before)
            except ValueError:
                after = before  # not a page of metrics
            self.scraped[url] = after
            if after.totals or after.report is not before.report:
                self._waits_s.pop(url, None)
                return self._interval_s
        wait_s = min(MAX_WAIT_S, self._waits_s.get(url, self._interval_s) * 2)
        self._waits_s[url] = wait_s
        return wait_s
