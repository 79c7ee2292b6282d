"""Families: the tree of what contexts share, from what the kernel tells of each."""

import pytest

from syscalls.abi import CtxRow, SharerRow
from userland import families
from userland.families import Key, branches, key_of, relatives


class Told:
    """A kernel with contexts whose tables are written as text: equal letters are one block."""

    def __init__(self, **tables: str) -> None:
        self.tables = {self._key(name): table for name, table in tables.items()}
        self.asked: list[Key] = []

    @staticmethod
    def _key(name: str) -> Key:
        task, number = name.removeprefix("t").split("_")
        return int(task), int(number)

    def rows(self) -> list[CtxRow]:
        """The newest first: the order of the kernel is not to matter."""
        return [
            CtxRow(ctx, pid, f"{pid}.{ctx}", "m", 0, 0, 0, len(table), self._shared((pid, ctx)),
                   0.0, False)
            for (pid, ctx), table in reversed(self.tables.items())
        ]  # fmt: skip

    def _common(self, one: Key, other: Key) -> int:
        pairs = zip(self.tables[one], self.tables[other], strict=False)
        return sum(a == b for a, b in pairs)

    def _shared(self, key: Key) -> int:
        return sum(self._common(key, other) for other in self.tables if other != key)

    def ask(self, row: CtxRow) -> list[SharerRow]:
        self.asked.append(key_of(row))
        return [
            SharerRow(*other, "", common)
            for other in self.tables
            if other != key_of(row) and (common := self._common(key_of(row), other))
        ]

    def parents(self) -> dict[Key, tuple[Key | None, int]]:
        return {key_of(r.row): (r.parent, r.common) for r in relatives(self.rows(), self.ask)[0]}


def test_a_fork_of_a_fork_stands_below_it() -> None:
    told = Told(t1_1="abc", t1_2="abcde", t1_3="abcdef", t1_4="abx", t1_5="zzz")
    assert told.parents() == {
        (1, 1): (None, 0), (1, 2): ((1, 1), 3), (1, 3): ((1, 2), 5), (1, 4): ((1, 1), 2),
        (1, 5): (None, 0),
    }  # fmt: skip
    assert (1, 5) not in told.asked, "it shares nothing"


def test_forks_of_one_context_stand_beside_one_another() -> None:
    told = Told(t1_1="abc", t1_2="abcx", t1_3="abcy", t1_4="abcz")
    assert {parent for parent, _ in told.parents().values()} == {None, (1, 1)}


def test_of_equals_one_of_the_same_task_is_nearer() -> None:
    told = Told(t1_1="ab", t2_1="ab", t2_2="abx")
    parents = told.parents()
    assert parents[2, 1] == ((1, 1), 2)
    assert parents[2, 2] == ((2, 1), 2)


def test_a_context_that_was_not_asked_about_is_found_by_those_that_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Told(t1_1="abc", t1_2="abcx", t1_3="abcy", t1_4="zw", t1_5="zwx")
    monkeypatch.setattr(families, "MAX_PAIRS", 9)  # one look at five
    found, left = relatives(told.rows(), told.ask)
    assert (told.asked, left) == ([(1, 1)], 4)
    assert {key_of(r.row): r.parent for r in found} == {
        (1, 1): None, (1, 2): (1, 1), (1, 3): (1, 1), (1, 4): None, (1, 5): None,
    }  # fmt: skip


def test_the_tree_has_every_context_once_below_its_parent() -> None:
    told = Told(t1_1="abc", t1_2="abcde", t1_3="abcdef", t1_4="abx", t1_5="zzz")
    tree = branches(relatives(told.rows(), told.ask)[0])
    assert [(b.of.row.ctx, b.depth, b.last) for b in tree] == [
        (1, 0, (False,)), (2, 1, (False, False)), (3, 2, (False, False, True)),
        (4, 1, (False, True)), (5, 0, (True,)),
    ]  # fmt: skip


def test_a_parent_that_is_not_among_them_leaves_a_tree_of_its_own() -> None:
    told = Told(t1_1="abc", t2_1="abcx", t2_2="abcxy")
    mine = [r for r in relatives(told.rows(), told.ask)[0] if r.row.pid == 2]
    assert [(b.of.row.ctx, b.depth) for b in branches(mine)] == [(1, 0), (2, 1)]


def test_ten_thousand_in_a_chain_are_no_recursion() -> None:
    rows = [CtxRow(n, 1, "", "m", 0, 0, 0, 1, 1, 0.0, False) for n in range(10_000)]
    chain = [families.Relative(row, (1, row.ctx - 1) if row.ctx else None, 1) for row in rows]
    tree = branches(chain)
    assert [b.of.row.ctx for b in tree] == list(range(10_000))
    assert [b.depth for b in tree[:30]] == [min(n, families.MAX_DEPTH - 1) for n in range(30)]
    assert max(len(b.last) for b in tree) == families.MAX_DEPTH
