"""Request routing over the same link graph that training uses.

``trainmesh serve`` starts one control process and one or more workers::

    control   probes, telemetry, link graph, verdicts ---- snapshot.json ---> worker
    worker    client -> proxy -> decide -> proxy -> endpoint ---- counters (mmap) ---> control

Words: an *endpoint* is one server of a model; a *pool* is the endpoints of one model; a *request*
is what a client sends; an *attempt* is one try of it at one endpoint (a *retry* comes after a
failed one, a *hedge* runs beside a slow one, a *trial* is a copy sent to an ejected endpoint and
thrown away); *TTFT* is the time to the first byte of the answer's body; *ejection* takes an
endpoint out for a while, *quarantine* is a verdict that stays until it is released, *cordon* is an
admin's word that no new request goes there, *drain* a cordon that waits until it is idle.

Folders: ``config`` what may be written in serve.yaml; ``decide`` pure routing decisions, no I/O
and no clock; ``proxy`` the data path; ``adapters`` other protocols than OpenAI's; ``identity`` who
asks, and what that allows; ``ledger`` every decision, to be read and replayed; ``control`` what
the workers are told.
"""
