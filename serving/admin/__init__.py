"""The admin server: the router's state, its metrics, and admins' orders for endpoints."""
