"""docs/serve_signals.md says what is true."""

import re
from pathlib import Path

from trainmesh.serving.config.types import Runtime
from trainmesh.serving.loading.load import loads
from trainmesh.serving.signals.probes import HEALTH_PATHS
from trainmesh.serving.signals.scrape import PAGES

TEXT = (Path(__file__).parents[3] / "docs" / "serve_signals.md").read_text()


def test_every_metric_and_every_health_page_is_named() -> None:
    sources = {source.name for page in PAGES.values() for some in page for source in some}
    assert {name for name in sources if name not in TEXT} == set()
    [table] = re.findall(r"\| runtime \| page .*?\n\n", TEXT, re.DOTALL)
    for runtime in Runtime:
        [row] = [line for line in table.splitlines() if f"`{runtime}`" in line]
        assert f"`{HEALTH_PATHS[runtime]}`" in row


def test_the_example_loads(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    config = loads(example.encode(), tmp_path / "serve.yaml", {})
    assert config.models["m"].endpoints[0].node == "h3"
