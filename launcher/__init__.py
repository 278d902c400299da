"""The commands: ``trainmesh launch`` and the commands that look at a job and ask.

Reading order: ``entry`` (before anything is imported), ``cli`` (which command, how errors end),
``run.options``, ``commands.launch`` and ``run.session`` (flags; one launch from begin to end),
``torchrun`` (how torch.distributed.run is called), ``site/`` (how the hook comes into workers),
``supervisor`` and ``service`` (the control-plane processes of this node). Every module of
``commands`` is one command: ``add_arguments(parser)`` and ``run(args)``.

Words: a *worker* is a training process started by torchrun; the *control plane* is the embedded
etcd, the agent and the coordinator; a *service* is one of these processes on this node.
"""
