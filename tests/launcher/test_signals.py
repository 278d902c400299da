"""A signal that comes where Python drops exceptions still ends the launch."""

import _imp
import importlib
import os
import signal
import threading
import time
import weakref
from pathlib import Path

import pytest

from trainmesh.launcher.run import signals


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_signal_comes_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "AGAIN_S", 0.1)

    def waits_after_a_dropped_signal() -> None:
        with signals.raising():
            thing = Thing()
            reference = weakref.ref(thing, lambda gone: os.kill(os.getpid(), signal.SIGINT))
            del thing
            assert reference() is None
            time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        waits_after_a_dropped_signal()


def test_a_signal_that_did_its_work_does_not_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "AGAIN_S", 0.1)
    with pytest.raises(KeyboardInterrupt), signals.raising():
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)


def test_of_several_signals_the_first_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others come while the first one's exception is on its way."""
    monkeypatch.setattr(signals, "AGAIN_S", 60.0)

    def storm() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except signals.Ended:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            except KeyboardInterrupt:
                pytest.fail("the second signal took the place of the first")

    with signals.raising(), pytest.raises(signals.Ended) as caught:
        storm()
    assert caught.value.number == signal.SIGTERM


def test_an_import_lock_that_a_signal_left_behind_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the exception comes between the importer's taking its lock and what gives it back:
    the progress line's imports would wait for ever, and the clean-up for them."""
    (tmp_path / "imported_late.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    thread = threading.Thread(target=importlib.import_module, args=("imported_late",), daemon=True)
    with signals.raising():
        _imp.acquire_lock()
        _imp.acquire_lock()
        thread.start()
        signals.hold()
        with pytest.raises(RuntimeError):  # this thread has it no more
            _imp.release_lock()
    thread.join(30)
    assert not thread.is_alive()


def test_handlers_are_as_they_were() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), signals.raising():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
