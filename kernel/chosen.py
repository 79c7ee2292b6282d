"""Chosen: the policy that decides now, of those that this kernel was started with.

The kernel brings fair, fifo and priority along; more come from packages that are installed beside
it, as entry points of GROUP: a class that is called without arguments and gives a Policy. They are
trusted code, loaded when the kernel starts and at no other time, and may import kernel.policy and
kernel.account. What one of them decides is looked at all the same: if it raises, or leaves its
bounds, the built-in default decides in its place, and the log says so.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from kernel.account import Account
from kernel.policies.fair import Fair
from kernel.policies.fifo import Fifo
from kernel.policies.priority import Priority
from kernel.policy import Idle, Policy, Runnable

log = logging.getLogger(__name__)

GROUP = "llmos.policies"
BUILT_IN: dict[str, Callable[[], Policy]] = {"fair": Fair, "fifo": Fifo, "priority": Priority}

T = TypeVar("T")


class Unknown(Exception):
    """There is no such policy; the message has those that there are."""


class Chosen:
    """A policy that hands each decision to the chosen one."""

    def __init__(self, name: str = "fair", installed: dict[str, Policy] | None = None) -> None:
        """Take what is installed, unless it is given."""
        self._built_in = {name: make() for name, make in BUILT_IN.items()}
        self._others = _installed() if installed is None else installed
        self._default = self._built_in["fair"]
        self._said: set[str] = set()  # what has been wrong with it, once each
        self.name = ""
        self._policy = self._default
        self.choose(name)

    @property
    def names(self) -> list[str]:
        """The policies that can be chosen."""
        return [*self._built_in, *self._others]

    def choose(self, name: str) -> None:
        """Let another policy decide from the next step on; Unknown if there is none."""
        policy = self._built_in.get(name) or self._others.get(name)
        if policy is None:
            raise Unknown(f"there is no policy {name}; there are {', '.join(self.names)}")
        self.name, self._policy = name, policy
        self._said.clear()

    # --- decisions ----------------------------------------------------------------------------

    def order(self, requests: Sequence[Runnable]) -> Iterable[Runnable]:
        if self.name in self._built_in:
            return self._policy.order(requests)
        return self._some(requests, lambda policy: policy.order(requests))

    def charge(self, payer: Account, service: int) -> None:
        self._ask(lambda policy: policy.charge(payer, service), lambda _: True)

    def claims(self, requests: Iterable[Runnable]) -> Sequence[Runnable]:
        known = list(requests)
        if self.name in self._built_in:
            return self._policy.claims(known)
        names = sorted(map(id, known))
        return self._ask(
            lambda policy: list(policy.claims(known)), lambda found: sorted(map(id, found)) == names
        )

    def idle_victims(self, contexts: Iterable[Idle], now: float) -> list[Idle]:
        known = list(contexts)
        return self._some(known, lambda policy: policy.idle_victims(known, now))

    def swaps(self, tokens: int, copy_us: float, compute_us: float) -> bool:
        return self._ask(
            lambda policy: policy.swaps(tokens, copy_us, compute_us), (True, False).__contains__
        )

    def parks(self, away_s: float, back_us: float) -> bool:
        return self._ask(lambda policy: policy.parks(away_s, back_us), (True, False).__contains__)

    def _some(self, of: Collection[T], ask: Callable[[Policy], Iterable[T]]) -> list[T]:
        """Return what a policy chooses of some, each once."""
        known = {id(item) for item in of}

        def legal(chosen: list[T]) -> bool:
            seen = {id(item) for item in chosen}
            return len(seen) == len(chosen) and seen <= known

        return self._ask(lambda policy: list(ask(policy)), legal)

    def _ask(self, ask: Callable[[Policy], T], legal: Callable[[T], bool]) -> T:
        """Ask the chosen policy; the default one if that is no answer."""
        if self.name in self._built_in:
            return ask(self._policy)
        try:
            answer = ask(self._policy)
            if legal(answer):
                return answer
            what = "it answers with what it was not asked about"
        except Exception as error:  # noqa: BLE001 - of code that is not ours
            what = repr(error)
        if what not in self._said and len(self._said) < 16:
            self._said.add(what)
            log.error("policy %s is wrong, fair decides in its place: %s", self.name, what)
        return ask(self._default)


def _installed() -> dict[str, Policy]:
    """Load the policies of other packages; one that cannot be loaded is left out, and told."""
    found: dict[str, Any] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILT_IN:
            log.error("policy %s of %s is left out: the kernel has one", entry.name, entry.value)
            continue
        try:
            found[entry.name] = entry.load()()
        except Exception as error:  # noqa: BLE001 - likewise
            log.error("policy %s cannot be loaded: %r", entry.name, error)
    return found
