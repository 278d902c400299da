"""How a job has ended, in words. Pure."""

from __future__ import annotations

import signal

from trainmesh.types import Failure, Outcome
from trainmesh.units import count

__all__ = ["describe_attempts", "describe_failure", "outcome_title"]

MAX_NAMED = 8
"""Failures in one sentence."""


def outcome_title(outcome: Outcome | None, num_steps: int, num_known_steps: int = 0) -> str | None:
    """Of a job that has not ended well after ``num_steps`` recorded steps of its last start (of
    ``num_known_steps`` if none was recorded), and why; None of one that has, or of which it is not
    known."""
    if outcome is None or not outcome.exit_code:
        return None
    after = "before its first step"
    if num_steps:
        after = f"after {count(num_steps, 'recorded step')}"
    elif num_known_steps:
        after = f"after {count(num_known_steps, 'step')} or more"
    code = f"exit code {outcome.exit_code}"
    if outcome.signal:
        return f"The job was stopped by {outcome.signal} {after} ({code})"
    if outcome.failures and not outcome.why:
        return f"The job failed {after} ({code}): {describe_failure(outcome.failures[0])}"
    why = f": {outcome.why}" if outcome.why else ""
    return f"The job failed {after} ({code}){why}"


def describe_failure(failure: Failure) -> str:
    """``rank 1 ended with exit code 3``."""
    who = f"local rank {failure.local_rank}" if failure.rank is None else f"rank {failure.rank}"
    if failure.exit_code < 0:
        how = f"was ended by {_signal_name(-failure.exit_code)}"
    else:
        how = f"ended with exit code {failure.exit_code}"
    return f"{who} {how}" + (f" ({failure.text})" if failure.text else "")


def describe_attempts(outcome: Outcome | None) -> list[str]:
    """A sentence for the other workers of the last attempt that failed, and one for each earlier
    attempt."""
    if outcome is None or not outcome.failures:
        return []
    gave_up = outcome.exit_code not in (None, 0) and not outcome.signal
    last = outcome.num_failed_attempts - 1 if gave_up else outcome.num_failed_attempts
    words = []
    others = [failure for failure in outcome.failures[1:] if failure.attempt == last]
    if gave_up and others:
        more = "; ..." if len(others) > MAX_NAMED else ""
        named = "; ".join(map(describe_failure, others[:MAX_NAMED]))
        words.append(f"Then, as torchrun ends the others when one has failed: {named}{more}.")
    words += [
        f"Attempt {failure.attempt + 1} of torchrun failed: {describe_failure(failure)}."
        for failure in outcome.failures
        if failure.attempt < last
    ]
    return words


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
