"""Inside the training process: time every gradient bucket, run the agreed plan.

Reading order: ``patch`` (how an unmodified script gets the hook), ``dispatcher`` (the one hook),
``agreement`` (how all ranks switch at the same step), ``executor`` (the plug-in surface) and the
executors ``native``, ``ring``, ``hierarchical``.

Words: the *dispatcher* is the communication hook that DDP knows; an *executor* carries out a
plan for one bucket; a *mark* holds the times of one bucket; a step is one synchronised backward.
"""
