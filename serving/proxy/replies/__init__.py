"""What the router answers itself."""
