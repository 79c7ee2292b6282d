"""Power cuts: whatever was not synced is lost, torn or kept, at every moment of everything that
changes the disk. Afterwards there is what was before or what was to be, never a mix, and what was
answered is there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import pytest

from drivers.store.base import SaveState
from drivers.store.keyring import Keyring
from drivers.store.keys import find_root
from tests.helpers.disks import MemoryFiles, crashes
from tests.helpers.store_client import KEYS, OWNER, STATE, Client, Content, Window, client, content

OTHER = OWNER + 1
QUICK = 40
"""States of one moment in the quick form."""
Names = dict[tuple[int, str], Content]


@dataclass
class Story:
    """What happens to a disk, and which saves there are after each thing that was answered."""

    steps: list[tuple[int, Names]] = field(default_factory=list)

    def possible(self, moment: int) -> list[Names]:
        """Return what may be there after a crash at a moment of the log."""
        done = [names for at, names in self.steps if at <= moment]
        coming = [names for at, names in self.steps if at > moment]
        return done[-1:] + coming[:1]


@pytest.fixture(scope="module")
def window() -> Iterator[Window]:
    made = Window()
    yield made
    made.close()


def first_boot(store: Client, told: Callable[[Names], None]) -> None:
    store.open()
    told({})


def two_saves(store: Client, told: Callable[[Names], None]) -> None:
    store.open()
    store.save("a", content(1))
    told({(OWNER, "a"): content(1)})
    store.save("b", content(2))
    told({(OWNER, "a"): content(1), (OWNER, "b"): content(2)})


def replace(store: Client, told: Callable[[Names], None]) -> None:
    store.open()
    for seed in (3, 4):
        store.save("name", content(seed))
        told({(OWNER, "name"): content(seed)})


def drop_and_save_again(store: Client, told: Callable[[Names], None]) -> None:
    store.open()
    store.drop("name")
    told({})
    store.save("name", content(3))
    told({(OWNER, "name"): content(3)})


def another_owner(store: Client, told: Callable[[Names], None]) -> None:
    """A key for somebody new: the keyring is written between two saves."""
    store.open()
    store.save("name", content(3), OTHER)
    told({(OWNER, "name"): content(0), (OTHER, "name"): content(3)})


def interleaved(store: Client, told: Callable[[Names], None]) -> None:
    """The save that began first counts last."""
    store.open()
    early = store.begin("name", content(3))
    store.save("other", content(4))
    told({(OWNER, "name"): content(0), (OWNER, "other"): content(4)})
    store.commit(early)
    told({(OWNER, "name"): content(3), (OWNER, "other"): content(4)})


BEFORE: dict[Callable[..., None], Names] = {
    first_boot: {}, two_saves: {}, replace: {(OWNER, "name"): content(0)},
    drop_and_save_again: {(OWNER, "name"): content(0)},
    another_owner: {(OWNER, "name"): content(0)}, interleaved: {(OWNER, "name"): content(0)},
}  # fmt: skip


def disk_with(names: Names, window: Window) -> MemoryFiles:
    """Return a disk with these saves, all of it durable."""
    files = MemoryFiles()
    if names:
        with client(files, window) as store:
            store.open()
            for (owner, name), what in names.items():
                store.save(name, what, owner)
    return files.copy()


def told_by(scenario: Callable[..., None], files: MemoryFiles, window: Window) -> Story:
    """Run a scenario; return what may be there when."""
    story = Story([(0, BEFORE[scenario])])
    with client(files, window) as store:
        scenario(store, lambda names: story.steps.append((len(files.log), names)))
    return story


def held(store: Client) -> Names:
    """Return all that can be loaded; nothing may be damaged, and nothing in between."""
    found: Names = {}
    for owner in (OWNER, OTHER):
        for row in store.rows(owner):
            loaded = store.load(row.name, owner)
            assert loaded.whole and loaded.state == SaveState.CURRENT
            found[owner, row.name] = loaded.content
    return found


@pytest.mark.parametrize("scenario", BEFORE, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("most", [QUICK, pytest.param(1 << 12, marks=pytest.mark.full)])
def test_old_or_new(scenario: Callable[..., None], most: int, window: Window) -> None:
    before = disk_with(BEFORE[scenario], window)
    files = before.copy()
    story = told_by(scenario, files, window)
    states = 0
    for moment, disk in crashes(before, files.log, Random(5), most):
        with client(disk, window) as store:
            opened = store.open()
            assert not opened.num_damaged and not opened.num_stale, opened
            found = held(store)
            assert found in story.possible(moment), moment
            # and life goes on
            saved = store.save("name", content(9))
            assert store.load("name").content == content(9)
            assert all(
                row.generation < saved.generation for row in store.rows() if row.name != "name"
            )
        with client(disk, window) as store:
            again = store.open()
            assert again.num_saves == len({*found, (OWNER, "name")}) and not again.notes
        assert not [path for path in disk.names_of if path.endswith(".tmp")]
        assert len(disk.names(f"{STATE}/saves")) == again.num_saves + 1, "and the catalogue"
        states += 1
    assert states > len(files.log)


@pytest.mark.parametrize("most", [6, pytest.param(60, marks=pytest.mark.full)])
def test_a_crash_while_it_recovers_from_a_crash(most: int, window: Window) -> None:
    """Three deep."""
    random = Random(6)
    before = disk_with(BEFORE[replace], window)
    files = before.copy()
    story = told_by(replace, files, window)
    every = [(moment, disk, moment) for moment, disk in crashes(before, files.log, random, most)]
    for _ in range(2):
        deeper = []
        for moment, disk, _at in random.sample(every, min(len(every), 12 * most)):
            recovering = disk.copy()
            with client(recovering, window) as store:
                store.open()
            for at, crashed in crashes(disk, recovering.log, random, 4):
                deeper.append((moment, crashed, at))
        every = deeper
    assert len(every) > 10 * most
    for moment, disk, _at in random.sample(every, min(len(every), 60 * most)):
        with client(disk, window) as store:
            opened = store.open()
            assert not opened.num_damaged and not opened.num_stale
            assert held(store) in story.possible(moment)


@pytest.mark.parametrize("scenario", BEFORE, ids=lambda scenario: scenario.__name__)
def test_killed_then_opened_then_the_power_fails(
    scenario: Callable[..., None], window: Window
) -> None:
    """What a killed process had not synced is still not synced when the next one relies on it."""
    before = disk_with(BEFORE[scenario], window)
    files = before.copy()
    story = told_by(scenario, files, window)
    for moment in range(len(files.log) + 1):
        live = before.replayed(files.log[:moment])
        with client(live, window) as store:
            store.open()
            found = held(store)
            assert found in story.possible(moment)
            if scenario is another_owner and len(found) == 1:
                # a key that was made just before is used without being written again
                store.save("name", content(3), OTHER)
                found[OTHER, "name"] = content(3)
        for _, disk in crashes(before, live.log, Random(moment), 12, len(live.log)):
            with client(disk, window) as store:
                assert not store.open().num_damaged
                after = held(store)
                assert after == found or after in story.possible(moment)
                assert len(after) == len(found) or scenario is not another_owner


def test_an_owner_who_is_forgotten_is_there_or_gone(window: Window) -> None:
    before = disk_with({(OWNER, "mine"): content(1), (OTHER, "theirs"): content(2)}, window)
    files = before.copy()
    root = find_root(files, KEYS)
    assert root is not None
    keyring = Keyring.load(files, KEYS, root, STATE)
    keyring.forget(OTHER)
    seen = set()
    for moment, disk in crashes(before, files.log, Random(7)):
        with client(disk, window) as store:
            store.open()
            assert store.load("mine").content == content(1)
            readable = bool([row for row in store.rows(OTHER) if row.state == SaveState.CURRENT])
            assert not readable or store.load("theirs", OTHER).content == content(2)
            assert not (readable and moment == len(files.log))
        seen.add(readable)
    assert seen == {True, False}
