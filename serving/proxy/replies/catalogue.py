"""The names that clients may ask for: models, their aliases, and adapters that endpoints list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from trainmesh.serving.proxy.route import ModelRoute
from trainmesh.serving.signals.listing import Listing

__all__ = ["Catalogue"]

_NOTHING: Final = Listing()


class Catalogue:
    """One worker's. Names of serve.yaml come first; an adapter that several models have is that of
    the first."""

    def __init__(self, routes: Mapping[str, ModelRoute]) -> None:
        self._named: dict[str, ModelRoute] = dict(routes)
        self._adapters: dict[str, tuple[ModelRoute, frozenset[int]]] = {}
        self._listings: Mapping[str, Listing] = {}
        for route in routes.values():
            for alias in route.pool.config.aliases:
                self._named[alias] = route

    def hear(self, listings: Mapping[str, Listing]) -> None:
        """What endpoints say that they serve now."""
        if listings == self._listings:
            return
        self._listings = listings
        found: dict[str, tuple[ModelRoute, frozenset[int]]] = {}
        for name, listing in listings.items():
            route = self._named.get(name)
            if route is None:
                continue
            places = {endpoint.name: endpoint.index for endpoint in route.pool.endpoints}
            for adapter, told in listing.adapters.items():
                indices = frozenset([places[one] for one in told.endpoints if one in places])
                if adapter not in self._named and adapter not in found and indices:
                    found[adapter] = (route, indices)
        self._adapters = found

    def find(self, name: str) -> tuple[ModelRoute, frozenset[int] | None] | None:
        """The route to a name, and which of its endpoints have it (None: all); None: nobody has."""
        route = self._named.get(name)
        if route is not None:
            return route, None
        return self._adapters.get(name)

    def cards(self, may_see: Callable[[str], bool]) -> dict[str, Mapping[str, Any]]:
        """Every name with its fields, for somebody who may see some models."""
        return dict(self._cards(may_see))

    def _cards(self, may_see: Callable[[str], bool]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, route in self._named.items():
            if may_see(route.name):
                yield name, self._listings.get(route.name, _NOTHING).card
        for adapter, (route, _) in self._adapters.items():
            if may_see(route.name):
                yield adapter, self._listings[route.name].adapters[adapter].card
