"""What a request is: who sends it, what it asks for, and where that may be answered."""

from __future__ import annotations

from collections.abc import Mapping

from trainmesh.errors import WireError
from trainmesh.serving.control.worker_config import WorkerConfig
from trainmesh.serving.decide.types import RequestFacts
from trainmesh.serving.identity.access import Access
from trainmesh.serving.identity.authenticator import Authenticator, Tenant
from trainmesh.serving.observe.log import LOGGER, log_event
from trainmesh.serving.observe.trace import RequestTrace, Tracer
from trainmesh.serving.proxy.context import WorkerContext
from trainmesh.serving.proxy.exchange.exchange import Exchange, ExchangeClient, ExchangeOwner
from trainmesh.serving.proxy.loops import ViaChain
from trainmesh.serving.proxy.reading.api import (
    EMBEDDINGS,
    check_coding,
    parse_body,
    prefix_blocks,
)
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.reading.headers import (
    API_KEY,
    AUTHORIZATION,
    CONTENT_ENCODING,
    ORIGIN,
    TRACEPARENT,
    VIA,
)
from trainmesh.serving.proxy.replies.catalogue import Catalogue
from trainmesh.serving.proxy.replies.cors import check_origin
from trainmesh.serving.proxy.replies.local import (
    health_answer,
    is_health_path,
    models_answer,
    unknown_path,
)
from trainmesh.serving.proxy.route import ModelRoute
from trainmesh.serving.proxy.routes import ModelRoutes
from trainmesh.serving.refusal import Refusal, RequestRefused, refused
from trainmesh.serving.signals.listing import Listing

__all__ = ["Intake"]


class Intake:
    """Of one configuration; a reload makes another one.

    Args:
        context: of the worker, which has that configuration.
        routes: the models.
        way: of this router.
        owner: of the exchanges that are made here.
    """

    __slots__ = ("_access", "_authenticator", "_catalogue", "_context", "_open", "_owner",
                 "_routes", "_way")  # fmt: skip

    def __init__(
        self,
        context: WorkerContext,
        routes: ModelRoutes,
        way: ViaChain,
        owner: ExchangeOwner,
    ) -> None:
        config = context.config
        self._context = context
        self._routes = routes
        self._way = way
        self._owner = owner
        self._catalogue = Catalogue(routes.by_name)
        self._authenticator = Authenticator(config)
        self._access = Access(config)
        self._open = not config.tenants and config.jwt is None

    def hear_keys(self, worker_config: WorkerConfig) -> None:
        """The token issuer's keys may be new."""
        if worker_config.jwks:
            try:
                self._authenticator.set_keys(worker_config.jwks.encode())
            except WireError as error:
                log_event(LOGGER, "keys_refused", reason=str(error))

    def hear_listings(self, listings: Mapping[str, Listing]) -> None:
        """What endpoints say that they serve now."""
        self._catalogue.hear(listings)

    def identify(self, call: Call, names: tuple[str, ...]) -> Tenant | None:
        """Who sends ``call``; None where that does not matter.

        Args:
            call: its header fields are there.
            names: those in the client's certificate.

        Raises:
            RequestRefused: nobody who may.
        """
        cors = self._context.cors
        if is_health_path(call.target) or (cors is not None and cors.is_preflight(call)):
            return None
        special = call.special
        authorization, key = special.get(AUTHORIZATION), special.get(API_KEY)
        shown = authorization
        if shown is None and key is not None:
            shown = b"Bearer " + key  # as Azure's clients show it
        found = self._authenticator.identify(shown, names)
        if isinstance(found, Refusal):
            raise RequestRefused(found)
        if self._open:
            check_origin(special.get(ORIGIN), cors)
            if authorization is not None:
                call.passed_key = b"authorization: %s\r\n" % authorization
            if key is not None:
                call.passed_key += b"api-key: %s\r\n" % key
        return found

    def local_answer(self, call: Call) -> bytes:
        """What the router answers itself.

        Raises:
            RequestRefused: there is nothing at its path.
        """
        head = self._context.own_fields(call)
        if is_health_path(call.path):
            return health_answer(call, self._routes.missing(), len(self._routes.by_name), head)
        if call.path == b"/v1/models" or call.path.startswith(b"/v1/models/"):
            tenant = call.tenant.name if call.tenant is not None else ""
            see = self._access.may_see
            cards = self._catalogue.cards(lambda model: see(tenant, model))
            return models_answer(call, cards, head)
        raise RequestRefused(unknown_path(call))

    def read(self, client: ExchangeClient, call: Call) -> Exchange:
        """What answers ``call`` to ``client``.

        Raises:
            RequestRefused: it is not served.
        """
        if call.method != b"POST":
            raise refused(
                405, f"{call.path.decode()} wants POST", code="method_not_allowed",
                fields=b"allow: POST\r\n",
            )  # fmt: skip
        check_coding(call.special.get(CONTENT_ENCODING))
        self._way.check(call.special.get(VIA))
        body = parse_body(call.body)
        call.model = body.model
        tenant = call.tenant
        found = self._catalogue.find(body.model) if body.model else self._only_route(tenant)
        route, holders = found or (None, None)
        if route is None or tenant is None or not self._access.may_see(tenant.name, route.name):
            raise refused(
                404, f"the model {body.model!r:.200} does not exist; see /v1/models",
                code="model_not_found", param="model",
            )  # fmt: skip
        call.adapter = holders is not None
        prompt = body.prompt
        output_tokens = body.output_tokens or route.pool.expected_output_tokens()
        session = route.session_of(call) or body.prompt_cache_key.encode("utf-8", "replace")
        facts = RequestFacts(
            request_id=self._context.request_id(call),
            client_id=call.given_id,
            model=route.name,
            tenant=tenant.name,
            priority=tenant.config.priority,
            stream=body.stream,
            nbytes=len(call.body),
            prompt_tokens=route.token_ratio.tokens(prompt.text, prompt.media, prompt.exact),
            output_tokens=0 if call.path == EMBEDDINGS else output_tokens,
            session=session,
            blocks=prefix_blocks(body.model if call.adapter else route.name, prompt.head),
        )  # fmt: skip
        allowed = self._allowed(tenant.name, facts)
        if holders is not None:
            allowed = holders if allowed is None else allowed & holders
        exchange = Exchange(self._context, self._owner, route, client, call, facts, allowed)
        exchange.estimates = prompt.text, prompt.media, prompt.exact
        if self._context.tracer is not None:
            exchange.attempts.trace = _trace_of(call, facts, self._context.tracer)
        return exchange

    def _allowed(self, tenant: str, facts: RequestFacts) -> frozenset[int] | None:
        """Indices of the endpoints that ``tenant`` may use for this request; None: all.

        Raises:
            RequestRefused: there is none.
        """
        grant = self._access.grant(tenant, facts.model)
        if isinstance(grant, Refusal):
            raise RequestRefused(grant)
        if not grant.depends:
            return grant.allowed
        allowed, reasons = grant.narrow(facts)
        if allowed is not None and not allowed:
            raise RequestRefused(grant.none_allowed(reasons))
        return allowed

    def _only_route(self, tenant: Tenant | None) -> tuple[ModelRoute, None]:
        """Of a request that names no model.

        Raises:
            RequestRefused: there is more than one.
        """
        name = tenant.name if tenant is not None else ""
        routes = self._routes.by_name.values()
        seen = [route for route in routes if self._access.may_see(name, route.name)]
        if len(seen) == 1:
            return seen[0], None
        raise refused(
            400, "the body names no model; see /v1/models", code="invalid_value", param="model"
        )


def _trace_of(call: Call, facts: RequestFacts, tracer: Tracer) -> RequestTrace | None:
    trace = tracer.begin(call.special.get(TRACEPARENT), f"POST {call.path.decode()}")
    if trace is not None:
        trace.set(gen_ai__request__model=facts.model, trainmesh__tenant=facts.tenant,
                  trainmesh__request_id=facts.request_id)  # fmt: skip
    return trace
