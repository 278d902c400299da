"""Pure routing decisions: no I/O, no clock of their own, nothing random but what they are given.

``pool.Pool`` chooses an endpoint for a request and learns from how it went; ``admission`` says
who is let in and who waits; ``record`` is one line of the ledger and its replay; ``simulate``
drives them without a socket.
"""
