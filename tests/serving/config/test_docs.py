"""docs/serve_config.md says what is true: its examples load and its tables are complete."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from tests.serving.identity.certs import Authority
from trainmesh.serving.config import types
from trainmesh.serving.config.changes import RESTART
from trainmesh.serving.identity.access import MAX_GROUPS
from trainmesh.serving.identity.keys import MAX_KEY, MIN_KEY
from trainmesh.serving.identity.rules import ENDPOINT, REQUEST, TENANT
from trainmesh.serving.loading.load import load
from trainmesh.serving.loading.reload import REREAD_S

TEXT = (Path(__file__).parents[3] / "docs" / "serve_config.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
SMALLEST = yaml.safe_load(EXAMPLES[0])
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "The file": types.Config,
    "A model": types.ModelConfig,
    "An endpoint": types.EndpointConfig,
    "TLS towards an endpoint": types.UpstreamTls,
    "Hedge": types.HedgeConfig,
    "Retry": types.RetryConfig,
    "Eject": types.EjectConfig,
    "Shadow": types.ShadowConfig,
    "A tenant": types.TenantConfig,
    "JWT": types.JwtConfig,
    "TLS": types.TlsConfig,
    "CORS": types.CorsConfig,
    "Limits": types.LimitsConfig,
    "Ledger": types.LedgerConfig,
    "Telemetry": types.TelemetryConfig,
    "Topology": types.TopologyConfig,
    "Routers": types.RouterConfig,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Authority(tmp_path, "clients").issue("router", "router.example")
    Authority(tmp_path, "endpoints")
    (tmp_path / "acme.keys").write_text("sk-acme-0123\n")
    (tmp_path / "operators.keys").write_text("sk-operators-0123\n")
    return tmp_path


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("\n", 1)[0])
def test_examples_load(folder: Path, example: str) -> None:
    """Those that are a part of a file, and say so, with the rest of the smallest one."""
    path = folder / "serve.yaml"
    parts = yaml.safe_load(example)
    rest = {key: SMALLEST[key] for key in ("version", "models") if key not in parts}
    path.write_text((yaml.safe_dump(rest) if rest else "") + example)
    assert not rest or example.startswith("# a part of serve.yaml"), "nobody can tell that"
    names = ("ACME_KEY", "OTHER_KEY", "UPSTREAM_KEY")
    load(path, {name: f"sk-0123-{name}" for name in names}, {"hybrid"})


def shown(field: msgspec.structs.FieldInfo) -> str:
    """A field's default, as the tables have it."""
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(value, msgspec.Struct) or value in ("", (), {}, None):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("title", SECTIONS)
def test_tables_have_every_key_and_its_default(title: str) -> None:
    [section] = re.findall(rf"^### {title}\n(.*?)(?=^#|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE)
    assert rows == [(field.name, shown(field)) for field in msgspec.structs.fields(SECTIONS[title])]


def test_every_part_has_a_table() -> None:
    public = {getattr(types, name) for name in types.__all__}
    structs = {kind for kind in public if issubclass(kind, msgspec.Struct)}
    assert set(SECTIONS.values()) == structs


def test_runtimes_and_rules_variables_are_listed() -> None:
    for runtime in types.Runtime:
        assert runtime.value in TEXT
    for name in (*TENANT, *ENDPOINT, *REQUEST):
        assert f"`{name}`" in TEXT or f"`.{name.partition('.')[2]}`" in TEXT
    assert f"at most {MAX_GROUPS}" in TEXT
    assert f"A **key** has {MIN_KEY} to {MAX_KEY} printable" in TEXT
    assert REREAD_S == 30.0  # "every half minute"
    listed = re.search(r"is reported\. ((?:`\w+`(?:, | and )?)+) need a restart", TEXT)
    assert listed is not None
    assert set(re.findall(r"\w+", listed[1])) - {"and"} == set(RESTART)
