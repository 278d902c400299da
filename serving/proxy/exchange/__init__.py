"""One request on its way: where it is sent, again if need be, and how its answer comes back."""
