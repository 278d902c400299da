"""Gradient compression: codecs that sum a bucket over all ranks with fewer bytes.

As in GRACE (Xu et al. 2021) there are three parts: the ``Codec`` compresses, the ``ErrorFeedback``
remembers the unsent part, and the ``CodecCollectives`` is a codec's only access to the network.

Reading order: ``gradient`` (a bucket), ``memory``, ``exchange``, ``codec`` (the plug-in surface),
then ``cast``, ``int8``, ``powersgd``, ``topk``; ``cost`` times a codec.
"""

from trainmesh.hooks.codecs.codec import CODECS, Codec, codec
from trainmesh.hooks.codecs.cost import Cost, measure_cost
from trainmesh.hooks.codecs.exchange import CodecCollectives, GroupExchange
from trainmesh.hooks.codecs.gradient import Gradient, GradientLayout, Layouts
from trainmesh.hooks.codecs.memory import ErrorFeedback

__all__ = [
    "CODECS",
    "Codec",
    "Cost",
    "ErrorFeedback",
    "CodecCollectives",
    "Gradient",
    "GroupExchange",
    "GradientLayout",
    "Layouts",
    "codec",
    "measure_cost",
]
