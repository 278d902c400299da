"""FSDP2 and HSDP: ``fully_shard`` scripts are timed, and replicas are summed by the agreed plan.

Reading order: ``install`` (where FSDP2 is entered), ``reductions`` (what is timed),
``replicas`` (plans for the all-reduce over the replicate dimension).
"""
