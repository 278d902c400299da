"""A signal that comes where Python drops exceptions still ends the launch."""

import os
import signal
import weakref

import pytest

from trainmesh.launcher import signals


class Thing:
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_exception_dropped_by_a_callback_is_raised_again(
    number: signal.Signals, raised: type[BaseException]
) -> None:
    with signals.raising():
        signals.check()
        thing = Thing()

        def dropped(gone: object) -> None:
            os.kill(os.getpid(), number)

        reference = weakref.ref(thing, dropped)
        del thing
        assert reference() is None
        with pytest.raises(raised):
            signals.check()


def test_handlers_are_as_they_were() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), signals.raising():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
