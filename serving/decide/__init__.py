"""Pure routing decisions: no I/O, no clock of their own, and no randomness but the numbers that
they are given.

``pool.Pool`` chooses an endpoint for a request and learns from the outcome; ``admission`` decides
which requests are let in and which wait; ``record`` is one line of the ledger and its replay;
``simulate`` drives them without a socket.
"""
