"""Authentication and authorization: keys, tokens, certificates, tenants and their rules.

Workers do no I/O for it: ``Authenticator`` and ``Access`` are made from the Config, and from the
token issuer's keys that the control process fetched (``jwks``).
"""
