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


def test_who_moves_takes_along_by_how_much_he_was_served_more() -> None:
    table = AccountTable()
    owner = table.owner(1000)
    greedy, modest, other = (table.task(pid, owner) for pid in (2, 3, 4))
    owner.floor, greedy.virtual, modest.virtual, other.virtual = 100.0, 900.0, 100.0, 0.0
    lab = table.group(owner, "lab")
    table.move(greedy, lab)
    assert lab.virtual == 900.0, "the group that is made for it stands where it stood"
    lab.floor = 5000.0
    table.move(modest, lab)
    table.move(other, lab)
    assert (modest.virtual, other.virtual) == (5000.0, 5000.0), "nothing is saved up"
    greedy.virtual = 5300.0
    table.move(greedy, owner)
    assert greedy.virtual == 400.0


def test_a_move_takes_along_what_is_there_now_and_leaves_what_was_charged() -> None:
    table = AccountTable()
    owner = table.owner(1000)
    agent = table.task(2, owner)
    child, stays = table.task(3, agent), table.task(4, owner)
    lab = table.group(owner, "lab")
    table.move(stays, lab)
    for account in child.path():
        account.usage.contexts, account.usage.output_ids = 2, 50
        account.usage.hold(1, 7, 0)
    table.move(agent, lab)
    assert (lab.usage.tasks, lab.usage.contexts, lab.usage.blocks[1]) == (3, 2, 7)
    assert (owner.usage.tasks, owner.usage.contexts, owner.usage.blocks[1]) == (3, 2, 7)
    assert (lab.usage.output_ids, owner.usage.output_ids) == (0, 50)
    assert (child.depth, child.level) == (4, 2) and repr(child) == "1000/lab/2/3"
