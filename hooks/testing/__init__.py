"""Prove a new executor or codec right, on real processes joined by gloo, from your own tests.

    from trainmesh.hooks.testing import check_codec, check_executor

    def test_my_executor():
        check_executor(MyExecutor)

    def test_my_codec():
        check_codec(MyCodec, options="4")

The same from a shell: ``python -m trainmesh.hooks.testing executor my_package:MyExecutor``.
"""

from trainmesh.hooks.testing.checks import CheckReport, check_codec, check_executor
from trainmesh.hooks.testing.plans import example_plan

__all__ = ["CheckReport", "check_codec", "check_executor", "example_plan"]
