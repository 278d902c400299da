"""The coordinator: what ranks report goes in, plans and their reasons come out."""
