"""serve.yaml: what is read, what is filled in, and the line for each thing that is wrong."""

import hashlib
from pathlib import Path

import msgspec
import pytest
import trustme

from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import Config, Runtime, TrafficClass
from trainmesh.serving.loading.load import MAX_BYTES, load

SMALLEST = """\
version: 1
listen: 127.0.0.1:8080
models:
  m:
    endpoints:
      - {url: "http://127.0.0.1:9001"}
      - {url: "http://127.0.0.1:9002"}
"""
POLICIES = {"hybrid", "mesh", "round_robin"}
KEY = "sk-0123456789abcdef"


def loaded(folder: Path, text: str, **environ: str) -> Config:
    path = folder / "serve.yaml"
    path.write_text(text)
    return load(path, environ, POLICIES)


def refusal(folder: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, **environ)
    message = str(caught.value)
    assert message.isprintable(), "more than one line"
    assert type(caught.value) is ConfigError
    return message.removeprefix(f"{folder}/")


def test_the_smallest_file_is_enough(tmp_path: Path) -> None:
    config = loaded(tmp_path, SMALLEST)
    model = config.models["m"]
    assert [endpoint.name for endpoint in model.endpoints] == ["127.0.0.1:9001", "127.0.0.1:9002"]
    assert (model.policy, config.workers, config.tenants) == ("hybrid", 1, {})


def test_what_is_loaded_survives_the_way_to_the_workers(tmp_path: Path) -> None:
    config = loaded(tmp_path, EVERYTHING, KEY=KEY, UPSTREAM=KEY)
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


def test_json_is_read_too(tmp_path: Path) -> None:
    text = (
        '{"version": 1, "insecure": true, "models": {"m": {"endpoints": [{"url": "http://h:1"}]}}}'
    )
    assert loaded(tmp_path, text).insecure is True


EVERYTHING = """\
version: 1
listen: 0.0.0.0:8080
insecure: true
workers: 2
models:
  llama:
    aliases: [gpt-4]
    policy: mesh
    session_header: X-Conversation
    shadow: {policy: round_robin, share: 0.1}
    retry: {attempts: 2, statuses: [503]}
    endpoints:
      - {url: "http://[::1]:9001/a/", zone: no, revision: 1.10, runtime: vllm, weight: 2e0}
      - {url: "http://Host.example", name: b, standby: true, api_key_env: UPSTREAM}
tenants:
  acme:
    keys: ["env:KEY", "file:keys.txt"]
    priority: 0
    zones: ["no"]
    revisions: {llama: "1.10"}
    models: [llama]
    rule: endpoint.weight > 1.0
topology: {traffic_class: yield, file: topology.yaml}
ledger: {dir: ledger}
"""


@pytest.fixture(autouse=True)
def keys_file(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(f"# two\n{KEY}-a\n\n{KEY}-b\n")


def test_values_are_typed_by_the_schema_not_by_yaml(tmp_path: Path) -> None:
    config = loaded(tmp_path, EVERYTHING, KEY=KEY, UPSTREAM=KEY)
    first, second = config.models["llama"].endpoints
    assert (first.zone, first.revision, first.runtime) == ("no", "1.10", Runtime.VLLM)
    assert (first.name, second.name, first.weight) == ("[::1]:9001", "b", 2.0)
    assert config.models["llama"].session_header == "x-conversation"
    assert config.topology.traffic_class is TrafficClass.YIELD
    assert config.models["llama"].retry.statuses == (503,)


def test_files_are_relative_to_the_configuration(tmp_path: Path) -> None:
    config = loaded(tmp_path, EVERYTHING, KEY=KEY, UPSTREAM=KEY)
    assert config.topology.file == str(tmp_path / "topology.yaml")
    assert config.ledger.dir == str(tmp_path / "ledger")


def test_only_digests_of_keys_are_kept(tmp_path: Path) -> None:
    config = loaded(tmp_path, EVERYTHING, KEY=KEY, UPSTREAM=KEY)
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in (KEY, f"{KEY}-a", f"{KEY}-b")]
    assert config.tenants["acme"].keys == tuple(f"sha256:{digest}" for digest in digests)
    assert KEY.encode() not in msgspec.json.encode(config)


def changed(old: str, new: str) -> str:
    assert SMALLEST.count(old) == 1
    return SMALLEST.replace(old, new)


def endpoint(text: str) -> str:
    return changed('{url: "http://127.0.0.1:9002"}', f"{{{text}}}")


def url(text: str) -> str:
    return endpoint(f'url: "{text}"')


def model(text: str) -> str:
    return changed("  m:\n", f"  m:\n    {text}\n")


def top(text: str) -> str:
    return f"{SMALLEST}{text}\n"


def tenant(text: str) -> str:
    return top(f'tenants:\n  a: {{keys: ["env:KEY"], {text}}}')


URL = "serve.yaml:7: models.m.endpoints[1].url: "
BAD = [
    ("", "serve.yaml: the document is empty"),
    ("[", "serve.yaml:2: not valid YAML: "),
    ("- 1\n", "serve.yaml:1: must be a mapping"),
    ("{}", "serve.yaml:1: version is missing; it must be 1"),
    ("version: 1\n", "serve.yaml:1: models is missing; it must be a mapping of 1 to 1024"),
    (changed("version: 1", "version: 2"), "serve.yaml:1: version: must be 1, not '2'"),
    (changed("  m:\n", "  m: &m\n") + "  n: *m\n", "serve.yaml:8: aliases (*name) are not support"),
    (top("version: 1"), "serve.yaml:8: 'version' is there twice"),
    (top("listn: 1"), "serve.yaml:8: listn: unknown key: did you mean listen?"),
    (top("zzz: 1"), "serve.yaml:8: zzz: unknown key; known: admin, admin_keys, audit, cors, "),
    (model("polcy: mesh"), "serve.yaml:5: models.m.polcy: unknown key: did you mean policy?"),
    (model("policy: mes"), "serve.yaml:5: models.m.policy: no policy mes: did you mean mesh?"),
    (model("shadow: {policy: zz}"), "serve.yaml:5: models.m.shadow.policy: no policy zz; known: h"),
    (model("shadow: {policy: hybrid}"), "serve.yaml:5: models.m.shadow.policy: is the model's own"),
    (model("aliases: [m]"), "serve.yaml:5: models.m.aliases[0]: m is the name of a model"),
    (model("aliases: [x, x]"), "serve.yaml:5: models.m.aliases[1]: x is an alias of model m alr"),
    (model("session_header: 'a b'"), "serve.yaml:5: models.m.session_header: must be the name of"),
    (model("hedge: {quantile: nan}"), "serve.yaml:5: models.m.hedge.quantile: must be a number, "),
    (model("hedge: {enabled: yes}"), "serve.yaml:5: models.m.hedge.enabled: must be true or false"),
    (model("retry: {statuses: [200]}"), "serve.yaml:5: models.m.retry.statuses[0]: must be a who"),
    (model("retry: 3"), "serve.yaml:5: models.m.retry: must be a mapping"),
    (model("eject: {base_s: 40}"), "serve.yaml:5: models.m.eject.base_s: must be at most max_s, w"),
    (changed("  m:\n", "  'm ':\n"), "serve.yaml:4: models.'m ': the name must be text of 1 to 25"
     "6 characters (none a control character, the first and last no space)"),
    (changed("  m:\n", '  "m\\n":\n'), "serve.yaml:4: models.'m\\n': the name must be text of 1"),
    (changed("endpoints:", "endpoint:"), "serve.yaml:5: models.m.endpoint: unknown key: did you"),
    (endpoint("name: x"), "serve.yaml:7: models.m.endpoints[1]: url is missing; it must be text o"),
    (endpoint('url: "http://a:1", weight: 0'), "serve.yaml:7: models.m.endpoints[1].weight: must"),
    (endpoint('url: "http://a:1", runtime: x'), "serve.yaml:7: models.m.endpoints[1].runtime: mu"),
    (endpoint('url: "http://a:1", name: "127.0.0.1:9001"'), "serve.yaml:7: models.m.endpoints[1]."),
    (endpoint('url: "http://a:1", zone: "a b"'), "serve.yaml:7: models.m.endpoints[1].zone: must "),
    (endpoint('url: "http://a:1", api_key_env: NO'), "serve.yaml:7: models.m.endpoints[1].api_key"),
    (endpoint('url: "http://a:1", tls: {san: x}'), "serve.yaml:7: models.m.endpoints[1].tls.san: "),
    (endpoint('url: "https://a:1", tls: {ca: no.pem}'), "serve.yaml:7: models.m.endpoints[1].tls."),
    (endpoint('url: "https://a:1", tls: {key: k}'), "serve.yaml:7: models.m.endpoints[1].tls.key:"),
    (url("http://127.0.0.1:9001/"), URL + "is that of endpoints[0] already"),
    (url("ftp://10.0.0.1"), URL + "must begin with http:// or https://, not 'ftp://10.0.0.1'"),
    (url("ftp://a"), URL + "must begin with http:// or https://, not 'ftp://a'"),
    (url("10.0.0.1:8000"), URL + "must begin with http:// or https://, not '10.0.0.1:8000'"),
    (url("${HOST}:8000"), URL + "must begin with http:// or https://, not '${HOST}:8000'"),
    (url("http://${HOST}:1"), URL + "must have a host, as in http://10.0.0.1:8000, not 'http://${"),
    (url(""), URL + "must begin with http:// or https://, not ''"),
    (url("http://a:1/v1/chat/completions"), URL + "must end before /chat/completions: "),
    (url("http://a:1/v1/embeddings/"), URL + "must end before /embeddings: "),
    (url("http://a:1/v1/models"), URL + "must end before /models: "),
    (url("http://a:hunter2@b:1"), URL + "must not hold a user or password"),
    (url("ftp://a:hunter2@b:1"), URL + "must begin with http:// or https://"),
    (url("http://a:hunter2/@b:1"), URL + "must be http://host:port or https://host:port"),
    (url("a:1?key=hunter2"), URL + "must begin with http:// or https://"),
    (url("http://a:70000"), URL + "must be http://host:port or https://host:port, not 'http://a:70"),
    (url("http://a:0"), URL + "the port must be 1 to 65535"),
    (url("http://a:"), URL + "the port must be 1 to 65535"),
    (url("http://a:1?x"), URL + "must not have a query or fragment"),
    (url("http://a:1#"), URL + "must not have a query or fragment"),
    (endpoint('url: "http://a:1/v1", runtime: kserve'), URL + "must end before /v1: "),
    (url("http://127.0.0.1:9001/v1"), URL + "is that of endpoints[0] already"),
    (url("http://a:1/../b"), URL + "the path may hold letters"),
    (url("http:///v1x"), URL + "must have a host"),
    (url("http://a b:1"), URL + "must be of printable ASCII characters without spaces"),
    (url("http://a\\nb:1"), URL + "must be of printable ASCII characters without spaces"),
    (url("http://-a:1"), URL + "must have a host"),
    (url("http://[::zz]:1"), URL + "must"),
    (url("http://"), URL + "must have a host"),
    (changed("127.0.0.1:8080", "8080"), "serve.yaml:2: listen: must be host:port"),
    (changed("127.0.0.1:8080", ":8080"), "serve.yaml:2: listen: must be host:port"),
    (changed("127.0.0.1:8080", "127.0.0.1:99999"), "serve.yaml:2: listen: port 99999 is not in 0"),
    (changed("127.0.0.1:8080", "0.0.0.0:8080"), "serve.yaml:2: listen: beyond loopback, give tls:"),
    (
        top("insecure: true").replace("127.0.0.1:8080", "'[::]:8080'"),
        "serve.yaml:2: listen: beyond loopback, say who may ask",
    ),
    (top("admin: 0.0.0.0:1"), "serve.yaml:8: admin: must be a loopback address"),
    (top("admin: 127.0.0.1:8080"), "serve.yaml:8: admin: is the same address as listen"),
    (changed("  m:", '  "m*":'), "serve.yaml:4: models.m*: must not hold *"),
    (changed("  m:", "  m:\n    aliases: [n, '*']"), "serve.yaml:5: models.m.aliases[1]: must not"),
    (top("tenants: {a: {}}"), "serve.yaml:8: tenants.a: nobody can be this tenant: give keys"),
    (top("tenants: {a: {subjects: [x]}}"), "serve.yaml:8: tenants.a.subjects: nobody can show one"),
    (top("tenants: {a: {keys: [hunter22]}}"), "serve.yaml:8: tenants.a.keys[0]: must be env:NAME"),
    (top("tenants: {a: {keys: ['env:NO']}}"), "serve.yaml:8: tenants.a.keys[0]: the variable 'NO'"),
    (top("tenants: {a: {keys: ['file:no']}}"), "serve.yaml:8: tenants.a.keys[0]: /"),
    (top("tenants: {a: {keys: ['sha256:ab']}}"), "serve.yaml:8: tenants.a.keys[0]: sha256: must"),
    (tenant("priority: 10"), "serve.yaml:9: tenants.a.priority: must be a whole number, at least"),
    (tenant("models: [n]"), "serve.yaml:9: tenants.a.models[0]: there is no model n; known: m"),
    (tenant("zones: [eu]"), "serve.yaml:9: tenants.a.zones[0]: there is no endpoint in zone eu; "),
    (tenant("revisions: {n: x}"), "serve.yaml:9: tenants.a.revisions.n: there is no model n; know"),
    (tenant("revisions: {m: x}"), "serve.yaml:9: tenants.a.revisions.m: there is no endpoint of"),
    (tenant("rule: 1 +"), "serve.yaml:9: tenants.a.rule: not a usable CEL expression at its chara"),
    (tenant("rule: endpoint.zon == ''"), "serve.yaml:9: tenants.a.rule: not a usable CEL express"),
    (tenant("rule: endpoint.zone"), "serve.yaml:9: tenants.a.rule: must be true or false, but is"),
    (top("tenants: {a: {keys: ['env:KEY']}, b: {keys: ['env:KEY']}}"), "serve.yaml:8: tenants.b.k"),
    (top("admin_keys: ['env:KEY']\ntenants: {b: {keys: ['env:KEY']}}"), "serve.yaml:9: tenants.b."),
    (top("jwt: {issuer: 'http://idp.example', audience: a}"), "serve.yaml:8: jwt.issuer: must beg"),
    (top("jwt: {issuer: 'https://idp', audience: a, jwks: 'x'}"), "serve.yaml:8: jwt.jwks: must b"),
    (top("tls: {cert: no.pem, key: no.pem}"), "serve.yaml:8: tls.cert: /"),
    (top("tls: {cert: keys.txt, key: no.pem}"), "serve.yaml:8: tls.cert: /"),
    (top("cors: {}"), "serve.yaml:8: cors: "),
    (top("cors: {origins: []}"), "serve.yaml:8: cors.origins: "),
    (top("cors: {origins: ['*'], credentials: true}"), "serve.yaml:8: cors.origins[0]: must not"),
    (top("cors: {origins: ['https://a/']}"), "serve.yaml:8: cors.origins[0]: must be scheme://host"),
    (top("cors: {origins: ['a.example']}"), "serve.yaml:8: cors.origins[0]: must be scheme://host"),
    (top("cors: {origins: ['*'], methods: [a b]}"), "serve.yaml:8: cors.methods[0]: must be a "),
    (top("cors: {origins: ['*'], headers: ['a:']}"), "serve.yaml:8: cors.headers[0]: must be the "),
    (top("limits: {buffered_bytes: 1}"), "serve.yaml:8: limits.buffered_bytes: must be at least b"),
    (top("limits: {queue: 1.5}"), "serve.yaml:8: limits.queue: must be a whole number, above 0, a"),
    (top("telemetry: {otlp: 'file:///x'}"), "serve.yaml:8: telemetry.otlp: must begin with http:/"),
    (top("routers: {etcd: 'x'}"), "serve.yaml:8: routers.etcd: etcd URL 'x' must be"),
    (top("topology: {file: a, job: b}"), "serve.yaml:8: topology.job: is given beside file"),
    (endpoint('url: "http://a:1", standby: true').replace('9001"}', '9001", standby: true}'),
     "serve.yaml:5: models.m.endpoints: all are on standby"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    found = refusal(tmp_path, text, KEY=KEY)
    assert found.startswith(message)
    assert "hunter2" not in found


def test_what_can_t_be_read_is_named(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "no.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (Path("\0"), "embedded null byte"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(path, {})
    large = tmp_path / "large"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 8 MiB"):
        load(large, {})
    large.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(large, {})


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000])
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    assert "nested more than 16 deep" in refusal(tmp_path, text)


def test_a_rule_that_reads_requests_may_not_cost_too_much(tmp_path: Path) -> None:
    endpoints = "\n".join(f'      - {{url: "http://h{number}:1"}}' for number in range(65))
    text = f"{SMALLEST}{endpoints}\ntenants:\n  a:\n    keys: ['env:KEY']\n    rule: "
    loaded(tmp_path, f"{text}endpoint.name != 'x'\n", KEY=KEY)
    loaded(tmp_path, f"{text}request.stream && endpoint.zone == ''\n", KEY=KEY)
    found = refusal(tmp_path, f"{text}request.stream && endpoint.name != 'x'\n", KEY=KEY)
    assert found.startswith("serve.yaml:76: tenants.a.rule: reads request, and tells 67 kinds")


def test_a_listener_beyond_loopback_with_tls_and_tenants(tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("router.example")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    text = changed("127.0.0.1:8080", "0.0.0.0:8443") + (
        "tls: {cert: cert.pem, key: key.pem, client_ca: ca.pem}\n"
        "tenants: {a: {subjects: ['spiffe://x/y']}}\n"
    )
    config = loaded(tmp_path, text)
    assert config.tls is not None
    assert config.tls.cert == str(tmp_path / "cert.pem")
    other = trustme.CA().issue_cert("router.example")
    other.private_key_pem.write_to_path(tmp_path / "key.pem")
    assert "serve.yaml:8: tls.key: " in refusal(tmp_path, text)
    (tmp_path / "ca.pem").write_text("nothing")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    assert "serve.yaml:8: tls.client_ca: " in refusal(tmp_path, text)
