"""The coordinator turns the reports of ranks into plans with their reasons."""
