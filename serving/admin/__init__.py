"""The admin server: what the router sees, its metrics, and admins' words on endpoints."""
