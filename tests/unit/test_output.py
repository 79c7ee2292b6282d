"""Ids to pieces: incomplete characters, stop strings over several ids, cuts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscalls.errors import EINVAL
from syscalls.output import MAX_STOP_LEN, MAX_STOPS, Output, Piece
from syscalls.session import Token
from tests.helpers.spelling import Spelling


def output(spelling: dict[int, bytes], *stop: str) -> Output:
    return Output(Spelling(spelling), stop)  # type: ignore[arg-type]


def feed(out: Output, *ids: int) -> list[Piece]:
    pieces: list[Piece] = []
    for id in ids:
        if out.keep is None:
            pieces += out.feed(Token([id], None, None))
    return pieces + out.finish()


WORDS = {1: b"Hello", 2: b", wor", 3: b"ld\n", 4: b"\nQ:", 5: b"\n", 6: b" more", 7: b""}


def test_text_of_each_id() -> None:
    out = output(WORDS)
    assert feed(out, 1, 2, 3) == [Piece(1, "Hello"), Piece(2, ", wor"), Piece(3, "ld\n")]
    assert out.text == "Hello, world\n"
    assert out.ids == [1, 2, 3]


def test_logprobs_go_with_their_ids() -> None:
    out = output(WORDS)
    top = [[(1, -0.1)], [(2, -0.2), (3, -3.0)]]
    assert out.feed(Token([1, 2], [-0.1, -0.2], top)) == [
        Piece(1, "Hello", -0.1, top[0]),
        Piece(2, ", wor", -0.2, top[1]),
    ]


def test_a_character_over_several_ids() -> None:
    snake = "\N{SNAKE}".encode()
    out = output({n: snake[n : n + 1] for n in range(4)} | {9: b"!"})
    assert [p.text for p in feed(out, 0, 1, 2, 3, 9)] == ["", "", "", "\N{SNAKE}", "!"]


def test_a_character_that_never_ends() -> None:
    out = output({0: b"a", 1: "\N{SNAKE}".encode()[:2]})
    pieces = feed(out, 0, 1)
    assert [piece.id for piece in pieces] == [0, 1, None]
    assert out.text == "a\ufffd"


def test_without_tokenizer() -> None:
    out = Output(None, ())
    assert out.feed(Token([5, 6], None, None)) == [Piece(5, ""), Piece(6, "")]
    assert out.finish() == []
    assert (out.ids, out.text) == ([5, 6], "")
    with pytest.raises(EINVAL, match="tokenizer"):
        Output(None, ("x",))


def test_an_empty_stop_string() -> None:
    with pytest.raises(EINVAL, match="empty"):
        output(WORDS, "x", "")


def test_limits_of_stop_strings() -> None:
    assert output({}, *map(str, range(MAX_STOPS - 1)), "x" * MAX_STOP_LEN).keep is None
    with pytest.raises(EINVAL, match=f"{MAX_STOPS + 1} stop strings, the limit is {MAX_STOPS}"):
        output({}, *[str(n) for n in range(MAX_STOPS + 1)])
    with pytest.raises(EINVAL, match=f"{MAX_STOP_LEN + 1} characters"):
        output({}, "x" * (MAX_STOP_LEN + 1))


# --- stop strings ---------------------------------------------------------------------------------


def test_a_stop_string_in_one_id() -> None:
    out = output(WORDS, "wor")
    assert feed(out, 1, 2) == [Piece(1, "Hello"), Piece(2, ", ")]
    assert (out.text, out.keep, out.ids) == ("Hello, ", 2, [1, 2])


def test_a_stop_string_that_begins_an_id() -> None:
    out = output(WORDS, ", w")
    assert feed(out, 1, 2) == [Piece(1, "Hello")]
    assert (out.text, out.keep, out.ids) == ("Hello", 1, [1])


def test_a_stop_string_over_two_ids() -> None:
    """The first of them is kept: it holds text that was shown."""
    out = output(WORDS, "\n\n")
    assert feed(out, 1, 2, 3, 4) == [Piece(1, "Hello"), Piece(2, ", wor"), Piece(3, "ld")]
    assert (out.text, out.keep, out.ids) == ("Hello, world", 3, [1, 2, 3])


def test_a_stop_string_over_two_whole_ids() -> None:
    out = output(WORDS, "\n\nQ")
    assert feed(out, 1, 5, 4) == [Piece(1, "Hello"), Piece(5, "")]
    assert (out.text, out.keep, out.ids) == ("Hello", 1, [1])


def test_held_text_comes_when_it_was_no_stop_string() -> None:
    out = output(WORDS, "\n\n")
    assert feed(out, 3, 6) == [Piece(3, "ld"), Piece(6, "\n more")]
    assert out.keep is None


def test_held_text_comes_at_the_end() -> None:
    out = output(WORDS, "\n\n")
    assert feed(out, 3) == [Piece(3, "ld"), Piece(None, "\n")]
    assert out.text == "ld\n"


def test_held_text_before_a_stop_string_comes_too() -> None:
    out = output({1: b"aa", 2: b"a", 3: b"b"}, "aab")
    pieces = feed(out, 1, 2, 3)
    assert "".join(piece.text for piece in pieces) == out.text == "a"
    assert (out.keep, out.ids) == (1, [1])


def test_the_first_of_several_stop_strings() -> None:
    out = output({1: b"abcdef"}, "ef", "cd", "zz")
    feed(out, 1)
    assert out.text == "ab"


def test_a_stop_string_at_once() -> None:
    out = output(WORDS, "Hell")
    assert feed(out, 1) == []
    assert (out.text, out.keep, out.ids) == ("", 0, [])


def test_ids_in_one_event_after_the_stop_are_dropped() -> None:
    out = output(WORDS, "wor")
    assert out.feed(Token([1, 2, 3], None, None)) == [Piece(1, "Hello"), Piece(2, ", ")]
    assert out.ids == [1, 2]


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "aab", "", "é", "\N{SNAKE}"]), max_size=12),
    st.lists(st.sampled_from(["ab", "ba", "aab", "bb", "éa", "\N{SNAKE}a"]), max_size=3),
    st.integers(1, 3),
)
def test_cutting_is_the_same_however_the_text_is_split(
    words: list[str], stop: list[str], size: int
) -> None:
    text = "".join(words)
    whole = text.encode()
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    out = output(dict(enumerate(chunks)), *stop)
    pieces = feed(out, *range(len(chunks)))
    # Of the stop strings that end first, the one that begins first.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    found = [text.find(s) for s in stop if s in text]
    assert "".join(piece.text for piece in pieces) == out.text
    if not found:
        assert (out.text, out.keep) == (text, None)
        return
    assert not any(s in out.text for s in stop)
    assert text.startswith(out.text)
    assert len(out.text) <= min(ends)
    kept = b"".join(chunks[: out.keep])
    assert out.keep == len(out.ids)
    assert kept.startswith(out.text.encode())  # what was shown is in the context


# --- cuts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "text"), [(0, ""), (1, "Hello"), (2, "Hello, wor")])
def test_a_cut(keep: int, text: str) -> None:
    out = output(WORDS)
    feed(out, 1, 2, 3)
    out.cut(keep)
    assert (out.ids, out.text) == ([1, 2, 3][:keep], text)
    out.cut(9)
    assert len(out.ids) == keep


def test_going_on_after_a_cut() -> None:
    out = output(WORDS)
    feed(out, 1, 3)
    out.cut(1)
    assert feed(out, 2, 6)[0] == Piece(2, ", wor")
    assert out.text == "Hello, wor more"
