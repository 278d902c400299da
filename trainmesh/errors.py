"""The error tree. Everything trainmesh raises on purpose is one of these.

Exit codes (docs/exit_codes.md) follow from it: 2 for a ConfigError, which is found before anything
is done, and 1 for every other.

TrainmeshError
|-- ConfigError       a flag, file or variable has a wrong value
|   |-- GraphError    a topology file or link graph is not usable
|-- PlanError         a plan or hint is malformed or not a correct all-reduce
|-- WireError         bytes from outside are not the JSON value they should be
|-- StoreError        the store (etcd) can't be reached or refused
    |-- Unreachable   nothing answers there now; it may later
    |-- JobTaken      another launch has the job's name
    |-- LeaseLost     a lease expired while its owner was away
    |-- FencedOut     another coordinator leads now; this one must stop
"""

__all__ = [
    "ConfigError",
    "FencedOut",
    "GraphError",
    "JobTaken",
    "LeaseLost",
    "PlanError",
    "StoreError",
    "StoreFull",
    "TrainmeshError",
    "Unreachable",
    "WireError",
]


class TrainmeshError(Exception):
    """Base of all errors. The message is one line: what, where, what to do."""

    exit_code = 1


class ConfigError(TrainmeshError):
    """A value given by the user is wrong; the message names it and the allowed values."""

    exit_code = 2


class GraphError(ConfigError):
    """A topology file or link graph can't be used; the message names the line, node or link."""


class PlanError(TrainmeshError):
    """A plan is malformed, does not fit the job, or would not compute an all-reduce."""


class WireError(TrainmeshError):
    """Bytes from a store, socket or file are not a valid value of the expected type."""


class StoreError(TrainmeshError):
    """The store can't be reached in time, or refused the request."""


class Unreachable(StoreError):
    """Nothing answers at the store's address now. That may change, so a job need not wait."""


class StoreFull(StoreError):
    """The store takes no writes until somebody makes room, so a job need not wait for it."""


class JobTaken(StoreError):
    """Another launch has the job's name; the message says who, and the way out."""


class LeaseLost(StoreError):
    """The lease is gone and with it every key that was bound to it."""


class FencedOut(StoreError):
    """The fencing token is no longer the leader's: another coordinator has taken over."""
