"""Configurations of nginx, HAProxy and Envoy that do for inference what each of them can: least
connections (or a consistent hash of the session), retries elsewhere, checks each second, passive
ejection, no buffering of streams, one worker."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

__all__ = ["envoy", "haproxy", "nginx"]


def nginx(
    port: int, endpoints: Sequence[str], *, sessions: bool, pem: tuple[Path, Path] | None
) -> str:
    """nginx.conf; ``pem`` certificate and key."""
    balance = "hash $http_x_session_id consistent;" if sessions else "least_conn;"
    servers = "\n".join(f"    server {e} max_fails=3 fail_timeout=1s;" for e in endpoints)
    listen = f"listen 127.0.0.1:{port}{' ssl' if pem else ''} backlog=4096;"
    tls = f"ssl_certificate {pem[0]}; ssl_certificate_key {pem[1]};" if pem else ""
    return f"""
{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr crit;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  keepalive_requests 1000000000;
  upstream fleet {{
    {balance}
{servers}
    keepalive 1024;
    keepalive_requests 1000000000;
  }}
  server {{
    {listen}
    {tls}
    client_max_body_size 64m;
    client_body_buffer_size 1m;
    location / {{
      proxy_pass http://fleet;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
      proxy_next_upstream error timeout http_502 http_503 http_504 http_429 non_idempotent;
      proxy_next_upstream_tries 3;
    }}
  }}
}}
"""


def haproxy(
    port: int, endpoints: Sequence[str], *, sessions: bool, pem: tuple[Path, Path] | None
) -> str:
    """haproxy.cfg; ``pem`` certificate and key, which it reads from FILE and FILE.key."""
    balance = "hdr(x-session-id)\n  hash-type consistent\n  hash-balance-factor 150"
    tls = f" ssl crt {pem[0]}" if pem else ""
    servers = "\n".join(
        f"  server e{i} {e} pool-max-conn 1024 check inter 1s fall 2 rise 1 observe layer7"
        " error-limit 5 on-error mark-down"
        for i, e in enumerate(endpoints)
    )
    return f"""
global
  nbthread 1
  maxconn 4096
  ssl-load-extra-files key
defaults
  mode http
  timeout connect 2s
  timeout client 600s
  timeout server 600s
  timeout check 1s
  timeout http-keep-alive 600s
  option http-keep-alive
  option http-no-delay
  option abortonclose
  http-reuse always
frontend in
  bind 127.0.0.1:{port}{tls}
  default_backend fleet
backend fleet
  balance {balance if sessions else "leastconn"}
  option httpchk GET /health
  option redispatch
  retries 3
  retry-on conn-failure empty-response 503
{servers}
"""


def envoy(
    port: int, endpoints: Sequence[str], *, sessions: bool, pem: tuple[Path, Path] | None
) -> str:
    """envoy.yaml, written as JSON, which YAML includes."""
    listener = {
        "address": _address(f"127.0.0.1:{port}"),
        "filter_chains": [
            {"filters": [_connection_manager(sessions)], **({} if pem is None else _tls(*pem))}
        ],
    }
    cluster = {
        "name": "fleet",
        "connect_timeout": "2s",
        "lb_policy": "MAGLEV" if sessions else "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": "fleet",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address(e)}} for e in endpoints]}
            ],
        },
        "circuit_breakers": {
            "thresholds": [
                dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100_000)
                | {"max_retries": 1000}
            ]
        },
        "outlier_detection": {
            "consecutive_5xx": 3,
            "interval": "1s",
            "base_ejection_time": "1s",
            "max_ejection_percent": 50,
        },
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/health"},
            }
        ],
    }
    document = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    return msgspec.json.format(msgspec.json.encode(document)).decode()


def _address(endpoint: str) -> dict[str, object]:
    host, _, port = endpoint.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _typed(name: str, **fields: object) -> dict[str, object]:
    return {"@type": f"type.googleapis.com/envoy.{name}", **fields}


def _connection_manager(sessions: bool) -> dict[str, object]:
    retries = {
        "retry_on": "connect-failure,refused-stream,reset-before-request,reset,"
        "retriable-status-codes",
        "retriable_status_codes": [429, 502, 503, 504],
        "num_retries": 3,
        "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": _typed(
                    "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                ),
            }
        ],
    }
    route: dict[str, object] = {"cluster": "fleet", "timeout": "0s", "retry_policy": retries}
    if sessions:
        route["hash_policy"] = [{"header": {"header_name": "x-session-id"}}]
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": _typed(
            "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="in",
            codec_type="HTTP1",
            route_config={
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": route}],
                    }
                ]
            },
            http_filters=[
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": _typed("extensions.filters.http.router.v3.Router"),
                }
            ],
        ),
    }


def _tls(certificate: Path, key: Path) -> dict[str, object]:
    return {
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": _typed(
                "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                common_tls_context={
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": str(certificate)},
                            "private_key": {"filename": str(key)},
                        }
                    ]
                },
            ),
        }
    }
