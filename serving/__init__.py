"""Request routing over the same link graph that training uses.

``trainmesh serve`` starts one control process and one or more workers::

    control   probes, telemetry, link graph, verdicts ---- snapshot.json ---> worker
    worker    client -> proxy -> decide -> proxy -> endpoint ---- counters (mmap) ---> control

Words: an *endpoint* is one server of a model; a *pool* is the endpoints of one model; a *request*
is what a client sends; an *attempt* is one try of it at one endpoint (a *retry* comes after a
failed one, a *hedge* runs beside a slow one, a *trial* is a copy sent to an ejected endpoint and
thrown away); *TTFT* is the time to the first byte of the answer's body; *ejection* takes an
endpoint out for a while, *quarantine* is a verdict that stays until it is released, *cordon* is an
admin's order to send no new request there, *drain* a cordon that waits until the endpoint is idle.

Folders: ``config`` holds the types of serve.yaml; ``decide`` pure routing decisions, without I/O or
clock; ``proxy`` the data path; ``adapters`` protocols other than OpenAI's; ``identity``
authentication, and what a sender may do; ``ledger`` every decision, to be read and replayed;
``control`` builds what the workers are given.
"""
