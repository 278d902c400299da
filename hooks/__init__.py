"""Inside the training process: time every gradient bucket, run the agreed plan.

Reading order: ``patch`` (how an unmodified script gets the hook), ``ddp`` (its modules and their
one hook, the ``dispatcher``), ``agreement`` and ``switching`` (how all ranks switch at the same
step), ``route`` (what happens to buckets on their way), ``executor`` (the plug-in surface) and
``executors``; ``fsdp`` is the same for fully_shard.

Words: the *dispatcher* is the communication hook that DDP knows; an *executor* carries out a
plan for one bucket; a *mark* holds the times of one bucket; a step is one synchronised backward.
"""
