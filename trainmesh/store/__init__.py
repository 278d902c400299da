"""The store: a revisioned key-value map with leases, watches and fencing, on etcd or in memory."""
