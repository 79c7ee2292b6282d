"""Accounts: a tree that keeps its shape while anybody is in it, and nothing longer."""

from kernel.account import MAX_DEPTH, WEIGHTS, AccountTable, Kind


def test_what_a_child_is_charged_its_ancestors_are() -> None:
    table = AccountTable()
    agent = table.task(2, table.group(table.owner(1000), "lab"))
    child = table.task(3, agent)
    assert [account.name for account in child.path()] == ["3", "2", "lab", "1000", ""]
    assert child.is_below(agent) and child.is_below(table.root) and not agent.is_below(child)
    assert repr(child) == "1000/lab/2/3"


def test_an_account_stays_while_there_are_others_below_it() -> None:
    table = AccountTable()
    group = table.group(table.owner(1000), "lab")
    agent = table.task(2, group)
    child = table.task(3, agent)
    table.close(agent)
    assert child.parent is agent and table.group(table.owner(1000), "lab") is group
    table.close(child)
    assert table.group(table.owner(1000), "lab") is not group, "it has ended with its last task"


def test_a_task_at_the_greatest_depth_has_its_children_beside_it() -> None:
    table, pid = AccountTable(), 2
    account = table.task(pid, table.owner(0))
    for pid in range(3, 40):
        account = table.task(pid, account)
    assert account.depth == MAX_DEPTH
    assert len(list(account.path())) == MAX_DEPTH + 1


def test_weights_are_those_of_linux() -> None:
    table = AccountTable()
    weights = [table.task(2, table.owner(0), nice).weight for nice in (-20, 0, 19)]
    assert weights == [88761, 1024, 15]
    assert len(WEIGHTS) == 40 and sorted(WEIGHTS, reverse=True) == list(WEIGHTS)
    assert table.owner(0).kind is Kind.OWNER
