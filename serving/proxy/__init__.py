"""The data path: bytes from a client to an endpoint and back.

``client`` reads requests, ``exchange`` carries one of them out, ``upstream`` reads answers and
forwards their bytes as they came, ``router`` holds what they share and ``worker`` is the process.
"""
