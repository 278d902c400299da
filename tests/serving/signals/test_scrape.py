"""Pages in the documented form of each runtime, and pages that are none."""

import asyncio
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.signals.builds import Server, config, serving, until
from trainmesh.serving.config.types import EndpointConfig, Runtime
from trainmesh.serving.signals.fetch import Fetcher
from trainmesh.serving.signals.scrape import (
    PAGES,
    EngineLoad,
    Scraped,
    Scraper,
    metrics_url,
    read_page,
)

PAGES_OF = Path(__file__).parent / "pages"


def page(name: str) -> str:
    return (PAGES_OF / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("runtime", "name", "queued", "running", "kv_use"),
    [
        (Runtime.VLLM, "vllm", 12, 7, 0.875),
        (Runtime.VLLM, "vllm-0.5", 2, 5, 0.42),
        (Runtime.KSERVE, "vllm", 12, 7, 0.875),
        (Runtime.SGLANG, "sglang", 2826, 162, 0.28),
        (Runtime.TGI, "tgi", 7, 4, 0.0),
        (Runtime.LLAMACPP, "llamacpp", 2, 4, 0.62),
        (Runtime.TRITON, "triton-trtllm", 3, 9, 0.4875),
        (Runtime.TRITON, "vllm", 12, 7, 0.875),
        (Runtime.OVMS, "ovms", 0, 5, 0.0),
        *(
            (Runtime.OPENAI, name, *expected)
            for name, expected in {
                "vllm": (12, 7, 0.875),
                "sglang": (2826, 162, 0.28),
                "tgi": (7, 4, 0.0),
                "llamacpp": (2, 4, 0.62),
            }.items()
        ),
    ],
)
def test_gauges(runtime: Runtime, name: str, queued: int, running: int, kv_use: float) -> None:
    found = read_page(PAGES[runtime], page(name), 5.0, Scraped())
    assert found.report == EngineLoad(queued, running, kv_use, 5.0)


@pytest.mark.parametrize(
    ("runtime", "name", "queued", "running"),
    [(Runtime.TRITON, "triton", 3, 3), (Runtime.TORCHSERVE, "torchserve", 3, 4)],
)
def test_counters_of_time_give_mean_numbers(
    runtime: Runtime, name: str, queued: int, running: int
) -> None:
    first = read_page(PAGES[runtime], page(name), 10.0, Scraped())
    assert first.report == EngineLoad()  # one page says nothing yet
    second = read_page(PAGES[runtime], page(f"{name}-2s-later"), 12.0, first)
    assert second.report == EngineLoad(queued, running, 0.0, 12.0)
    restarted = read_page(PAGES[runtime], page(name), 14.0, second)
    assert restarted.report == second.report  # smaller counters are a new process's


def test_a_gauge_and_a_counter_of_one_page() -> None:
    first = read_page(PAGES[Runtime.OVMS], page("ovms"), 10.0, Scraped())
    second = read_page(PAGES[Runtime.OVMS], page("ovms-2s-later"), 12.0, first)
    assert second.report == EngineLoad(4, 5, 0.0, 12.0)


def test_what_a_page_does_not_have_keeps_its_age() -> None:
    known = Scraped(EngineLoad(1, 2, 0.3, 4.0), at_s=4.0)
    for text in ("", "# nothing\n", "other_metric 1\n", "vllm:num_requests_waiting NaN\n"):
        assert read_page(PAGES[Runtime.VLLM], text, 9.0, known).report == known.report


def test_values_out_of_range_are_cut() -> None:
    text = "tgi_queue_size -3\ntgi_batch_current_size 1e300\n"
    assert read_page(PAGES[Runtime.TGI], text, 1.0, Scraped()).report == EngineLoad(
        0, 10**9, 0.0, 1.0
    )
    text = "vllm:kv_cache_usage_perc 7\n"
    assert read_page(PAGES[Runtime.VLLM], text, 1.0, Scraped()).report.kv_use == 1.0


@given(st.text(max_size=200), st.sampled_from(sorted(PAGES)))
@settings(derandomize=True, max_examples=300)
def test_no_page_breaks_the_reader(text: str, runtime: Runtime) -> None:
    for prefix in ("", "vllm:num_requests_waiting", 'tgi_queue_size{a="'):
        try:
            report = read_page(PAGES[runtime], prefix + text, 1.0, Scraped()).report
        except ValueError:
            continue
        assert report.queued >= 0
        assert math.isfinite(report.kv_use)


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"url": "http://h:9000"}, "http://h:9000/metrics"),
        ({"url": "http://h:9000/v1"}, "http://h:9000/metrics"),
        ({"url": "https://h/team/v1/"}, "https://h/team/metrics"),
        ({"url": "http://h:8000", "runtime": Runtime.TRITON}, "http://h:8002/metrics"),
        ({"url": "http://h:8080", "runtime": Runtime.TORCHSERVE}, "http://h:8082/metrics"),
        ({"url": "http://h:1", "metrics": "http://g:2/own"}, "http://g:2/own"),
    ],
)
def test_where_pages_are(fields: dict[str, str], url: str) -> None:
    assert str(metrics_url(EndpointConfig(**fields))) == url  # type: ignore[arg-type]


@pytest.mark.starts
def test_a_server_is_asked_again_and_one_without_a_page_less_and_less() -> None:
    async def run() -> None:
        fetcher = Fetcher()
        scraper = Scraper(fetcher)
        async with serving(Server()) as told, serving(Server()) as silent:
            told.answers["/metrics"] = (200, page("tgi"))
            scraper.update(
                config(
                    [{"url": told.url, "name": "a"}, {"url": silent.url, "name": "b"}],
                    telemetry={"scrape_interval_s": 0.05},
                )
            )
            await until(lambda: told.url in scraper.reports(), "a report")
            assert scraper.reports()[told.url].queued == 7
            told.answers["/metrics"] = (200, page("tgi").replace("size 7", "size 1"))
            await until(lambda: scraper.reports()[told.url].queued == 1, "a new report")
            await until(lambda: len(told.asked) >= 20, "20 pages")
            assert silent.url not in scraper.reports()
            assert len(silent.asked) < 8  # after 0.1, 0.2, 0.4, ... s
            scraper.update(config([{"url": told.url}], telemetry={"scrape": False}))
            assert scraper.reports() == {}
            await scraper.close()
            await fetcher.close()

    asyncio.run(run())
