"""trainmesh: measure the links a training job has, plan its collectives, move the running job.

The loop is the architecture::

    rank -- StepReport --> agent --> etcd --> coordinator --> Hint --> etcd --> agent --> rank
            (hooks)                           (topology)                        (hooks)

Packages, in the order in which to read them: ``trainmesh.types`` (the vocabulary),
``trainmesh.topology`` (graph in, plan out), ``trainmesh.coordinator.coordinator`` (decisions),
``trainmesh.hooks`` (inside the training process), ``trainmesh.launcher`` (the commands).
Importing ``trainmesh`` imports neither torch nor networkx.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
