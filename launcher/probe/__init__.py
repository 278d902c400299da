"""``trainmesh topology probe``: measure the links between a job's nodes."""
