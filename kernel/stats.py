"""Counters: facts about this kernel's life, for `snapshot`. They only rise."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """admitted = finished + failed + those still running or waiting."""

    turns: int = 0
    calls: int = 0
    protocol_errors: int = 0
    admitted: int = 0  # infers accepted
    finished: int = 0
    failed: int = 0
