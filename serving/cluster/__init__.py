"""The state of the cluster: the link graph, verdicts, cordons, other routers."""
