"""Request routing over the same link graph. Nothing is here yet: see the open issues."""
