"""Scripts of the simulator: what kinds of programs there are (tests/helpers/programs.py)."""

from collections.abc import Callable
from random import Random

from tests.helpers.programs import Program, Script
from tests.helpers.sim import Reply
from tests.helpers.streams import Owned

PORTS = "left", "right"
DEEPEST = 3
"""Tasks below the top of a team."""


def chat(program: Program) -> Script:
    """A person: a question, an answer, a thought, and again."""
    random = program.random
    yield program.hello()
    while True:
        owned = program.alloc()
        for _ in range(random.randint(1, 4)):
            yield program.infer(owned, random.randint(2, 12), program.ids(random.randint(2, 40)))
            yield random.uniform(0.1, 2.0)
        yield program.free(owned)


def agent(program: Program) -> Script:
    """A prompt that it shares with others, then turns, with a tool between each two."""
    random, world = program.random, program.world
    shared = Random(world.random.randrange(2)).choices(
        range(world.vocab), k=random.choice([32, 56])
    )
    yield program.hello()
    while True:
        owned = program.alloc()
        yield program.append(owned, shared)
        for _ in range(random.randint(1, 6)):
            yield program.infer(owned, random.randint(2, 8), program.ids(random.randint(2, 30)))
            yield tool_wait(random)
        yield program.free(owned)


def tool_wait(random: Random) -> float:
    """Return how long a tool takes: mostly moments, sometimes long."""
    draw = random.random()
    if draw < 0.86:
        return random.uniform(0.05, 1.0)
    return random.uniform(1.0, 10.0) if draw < 0.95 else random.uniform(10.0, 30.0)


def flood(program: Program) -> Script:
    """Never without work: several infers at any time, as long as they may be."""
    random = program.random
    yield program.hello()
    open_: list[tuple[Owned, Reply]] = []
    while True:
        while len(open_) < 6:
            owned = program.alloc()
            prompt = program.ids(random.randint(20, 120))
            open_.append((owned, program.infer(owned, random.randint(4, 30), prompt)))
        yield open_[0][1]
        ended = [each for each in open_ if each[1].done]
        for owned, _ in ended:
            program.free(owned)
        open_ = [each for each in open_ if not each[1].done]
        if any(reply.errno for _, reply in ended):
            yield 0.1


def tree(program: Program) -> Script:
    """Forks of one prompt that answer side by side, then all of them go."""
    random = program.random
    yield program.hello()
    while True:
        root = program.alloc()
        yield program.append(root, program.ids(random.randint(10, 100)))
        yield random.uniform(0.0, 0.05)
        children = [program.fork(root) for _ in range(random.randint(1, 5))]
        answers = [program.infer(child, random.randint(2, 10)) for child in children]
        yield from answers
        for child in (root, *children):
            yield program.free(child)
        yield random.uniform(0.0, 0.5)


def server(program: Program) -> Script:
    """Does what others ask of its port, sometimes by asking a model, sometimes another server."""
    random, port = program.random, program.random.choice(PORTS)
    yield program.hello()
    yield program.bind(port)
    owned = program.alloc()
    while port in program.ports:
        message = program.recv(port)
        yield message
        if message.errno:
            return
        draw = random.random()
        if draw < 0.5:
            yield program.infer(owned, random.randint(1, 6), program.ids(random.randint(1, 20)))
        elif draw < 0.7:
            yield program.ask(random.choice(PORTS))  # EDEADLK if that one waits for this one
        else:
            yield random.uniform(0.0, 0.3)
        yield program.answer(message.result.message)


def caller(program: Program) -> Script:
    """Asks the model, asks a server, and again."""
    random = program.random
    yield program.hello()
    owned = program.alloc()
    while True:
        answer = program.infer(owned, random.randint(1, 8), program.ids(random.randint(1, 30)))
        yield answer
        if answer.errno:
            yield program.free(owned)
            owned = program.alloc()
        yield program.ask(random.choice(PORTS), random.choice([None, 0.2]))
        yield random.uniform(0.0, 0.1)


def team(program: Program) -> Script:
    """Makes others, waits for them to end, and again."""
    program.world.quiet = True
    yield program.hello()
    while True:
        yield from hands(program, 1)
        yield program.random.uniform(0.0, 0.3)


def hands(program: Program, depth: int) -> Script:
    """Make some of a team, some of them in a group; work beside; wait for all."""
    random, group = program.random, f"of{program.pid}"
    yield from [
        program.spawn(hand(depth), f"{program.name}.{number}", random.choice([None, group]))
        for number in range(random.randint(1, 3))
    ]
    if random.random() < 0.5:
        owned = program.alloc()
        yield program.infer(owned, random.randint(1, 6), program.ids(random.randint(1, 30)))
        yield program.free(owned)
    while True:
        waits = program.wait()
        yield waits
        if waits.errno:
            return


def hand(depth: int) -> Callable[[Program], Script]:
    """Return the script of one of a team, so far below its top."""

    def script(program: Program) -> Script:
        random, hello = program.random, program.hello()
        yield hello
        if hello.errno:
            return  # its parent has ended before it came
        owned = program.alloc()
        for _ in range(random.randint(1, 3)):
            if depth < DEEPEST and random.random() < 0.3:
                yield from hands(program, depth + 1)
            yield program.infer(owned, random.randint(1, 8), program.ids(random.randint(1, 40)))
        yield program.exit()

    return script


def now_and_then(program: Program) -> Script:
    """One of thousands: short turns with long waits between them."""
    random = program.random
    yield program.hello()
    owned = program.alloc()
    yield program.append(owned, program.ids(4))
    while True:
        yield round(random.uniform(0.0, 4.0), 2)
        yield program.infer(owned, random.randint(1, 4), program.ids(random.randint(1, 12)))


SCRIPTS: tuple[Callable[[Program], Script], ...] = (
    chat, agent, flood, flood, tree, tree, server, server, caller, caller, team,
)  # fmt: skip
