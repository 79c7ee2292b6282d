"""Lines of llmsh to nodes and words; what cannot be read, and where."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from userland.llmsh.mistakes import Incomplete, ParseError, still_open
from userland.llmsh.nodes import Call, Command, Joint, Line, Pipeline
from userland.llmsh.parser import is_incomplete, parse
from userland.llmsh.questions import words_of
from userland.llmsh.words import arguments, text_of

VALUES = {"x": "one  two", "empty": "", "?": "7", "_": "an answer", "HOME": "/home/me"}


class Look:
    """Values: of VALUES, of the arguments $1 and $2, and of $(...) its source in capitals."""

    given: ClassVar = ["a b", "c"]

    def lookup(self, name: str) -> str:
        return self.given[int(name) - 1] if name in ("1", "2") else VALUES.get(name, "")

    def arguments(self) -> list[str]:
        return self.given

    def capture(self, line: Line) -> str:
        return " ".join(f"<{word}>" for stage in shape(line[0]) for word in stage)


look = Look()


def shape(pipeline: Pipeline) -> list[Any]:
    """A prompt as (context, text), a command as its arguments."""
    shown: list[Any] = []
    for stage in pipeline.stages:
        if isinstance(stage, Call):
            shown.append((stage.context, *words_of(stage, look)))
        elif isinstance(stage, Command):
            shown.append([arg for word in stage.words for arg in arguments(word, look)])
    return shown


def only(text: str) -> list[object]:
    (pipeline,) = parse(text)
    return shape(pipeline)


# --- what a line means ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ('"hello"', [(None, "hello")]),
        ("'hello'", [(None, "hello")]),
        ("? why is it so", [(None, "why is it so")]),
        ("?why", [(None, "why")]),
        ("? it's 1 > 0; or | \" # ?", [(None, "it's 1 > 0; or | \" # ?")]),
        ('@a "x"', [("a", "x")]),
        ("@a.b-c ? x y", [("a.b-c", "x y")]),
        ('git diff | "sum up" | less', [["git", "diff"], (None, "sum up"), ["less"]]),
        ('"a"|"b"|wc', [(None, "a"), (None, "b"), ["wc"]]),
        ("ls | ? which is the largest", [["ls"], (None, "which is the largest")]),
        ('echo "hello"', [["echo", "hello"]]),
        ("echo ? @a", [["echo", "?", "@a"]]),
        ('"hello"x', [["hellox"]]),
        ("ls # and | no more", [["ls"]]),
        ("ls a#b", [["ls", "a#b"]]),
        ("ls \\\n -l", [["ls", "-l"]]),
        ('"two\nlines"', [(None, "two\nlines")]),
    ],
)
def test_stages(text: str, stages: list[object]) -> None:
    assert only(text) == stages


def test_redirections() -> None:
    (pipeline,) = parse('<in "sum up" >out >> "more $x"')
    (call,) = pipeline.stages
    assert isinstance(call, Call)
    found = [(redirect.operator, text_of(redirect.target, look)) for redirect in call.redirects]
    assert found == [("<", "in"), (">", "out"), (">>", "more one  two")]


def test_a_number_is_a_word_unless_it_touches_an_operator() -> None:
    (pipeline,) = parse("echo 2 > out")
    (command,) = pipeline.stages
    assert isinstance(command, Command) and len(command.words) == 2


def test_joints_and_separators() -> None:
    text = '\n a && "b" || c ; d # x\n\ne;\n'
    assert [(p.joint, shape(p)) for p in parse(text)] == [
        (Joint.THEN, [["a"]]),
        (Joint.AND, [(None, "b")]),
        (Joint.OR, [["c"]]),
        (Joint.THEN, [["d"]]),
        (Joint.THEN, [["e"]]),
    ]


@pytest.mark.parametrize("text", ["", "  ", "# nothing", "\n\n# a\n  # b\n"])
def test_nothing(text: str) -> None:
    assert parse(text) == ()


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("'$x \\ \"'", ['$x \\ "']),
        ('"$x"', ["one  two"]),
        ('"${x}s"', ["one  twos"]),
        ("$x", ["one", "two"]),
        ("a$x", ["aone", "two"]),
        ("a${x}b", ["aone", "twob"]),
        ("$empty", []),
        ('"$empty"', [""]),
        ("$empty''", [""]),
        ("$?", ["7"]),
        ('"$_!"', ["an answer!"]),
        ('"\\$x \\" \\\\ \\n \\`"', ['$x " \\ \\n `']),
        ("\\$x\\ y", ["$x y"]),
        ("a\"b c\"'d e'f", ["ab cd ef"]),
        ('"costs \\$5, 100$"', ["costs $5, 100$"]),
        ("a$", ["a$"]),
        ("~", [str(Path.home())]),
        ("~/x", [f"{Path.home()}/x"]),
        ("'~'", ["~"]),
        ("a~", ["a~"]),
        ("~nosuchuser/x", ["~nosuchuser/x"]),
    ],
)
def test_words(word: str, expected: list[str]) -> None:
    assert only(f"echo {word}") == [["echo", *expected]]


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", ".hidden", "odd*"):
        Path(name).touch()
    Path("sub").mkdir()
    Path("sub/c.txt").touch()
    assert only("ls *.txt")[0] == ["ls", "a.txt", "b.txt"]
    assert only("ls [ab].txt")[0] == ["ls", "a.txt", "b.txt"]
    assert only("ls ./*.txt")[0] == ["ls", "./a.txt", "./b.txt"]
    assert only("ls */*")[0] == ["ls", "sub/c.txt"]
    assert only("ls *.py")[0] == ["ls", "*.py"]
    assert only("ls '*'.txt \"*\" \\*.txt")[0] == ["ls", "*.txt", "*", "*.txt"]
    assert only("ls 'odd*'")[0] == ["ls", "odd*"]


def test_the_value_of_a_variable_is_no_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").touch()
    monkeypatch.setitem(VALUES, "x", "*.txt")
    assert only("ls $x")[0] == ["ls", "*.txt"]


def test_text_is_taken_literally_after_it_was_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VALUES, "x", '$HOME "quoted" | wc')
    assert only('"say $x"') == [(None, 'say $HOME "quoted" | wc')]
    assert only("? say $x now") == [(None, 'say $HOME "quoted" | wc now')]


# --- what goes on ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ['"open', "echo 'open", 'echo a"open', "a |", "a &&", "a ||  ", 'a | "b\n', "a \\", "a | # b",
     '"ends in a backslash\\', '@a "open', "a |\n", "a &&\n\n# b", "a ||\r\n\r\n"],
)  # fmt: skip
def test_more_is_needed(text: str) -> None:
    assert is_incomplete(text)
    with pytest.raises(Incomplete):
        parse(text)


@pytest.mark.parametrize("text", ["", "a", "a;", '"a"', "? it's", "a | | b", "a <", "&& a", "( a"])
def test_no_more_is_needed(text: str) -> None:
    assert not is_incomplete(text)


@pytest.mark.parametrize(
    ("text", "line", "after"),
    [
        ('"a', "b", '"'), ("'a", 'b "c"', "'"), ('"a', 'b"', ""), ('"a', 'b" c "', '"'),
        ('"a', "b\" c 'd", "'"), ('"a', 'b\\" c', '"'), ("'a", "b\\' c", ""), ('"a', "\\", '"'),
        ('"a', 'b" c \\" d', ""), ("'a", "b' c \"d' e\" 'f", "'"), ('"a', 'b" c\'d\'"e', '"'),
    ],
)  # fmt: skip
def test_a_quote_is_followed_without_the_parser(text: str, line: str, after: str) -> None:
    with pytest.raises(Incomplete) as caught:
        parse(f"x {text}")
    assert still_open(caught.value.awaits, f"\n{line}") == after
    if after:
        with pytest.raises(Incomplete) as caught:
            parse(f"x {text}\n{line}")
        assert caught.value.awaits == after


@pytest.mark.parametrize("line", ["b\" # it's", "b\"; ? it's", "b\" c?'", 'b" c \\'])
def test_only_the_parser_tells_a_quote_from_an_apostrophe(line: str) -> None:
    assert still_open('"', line) == ""


# --- what makes no sense --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a | | b", 5, "'|' makes no sense here"),
        ("&& a", 1, "'&&' makes no sense here"),
        ("a ;; b", 4, "';' makes no sense here"),
        ("cat <", 6, "a file name is missing"),
        ("cat < | wc", 7, "a file name is missing"),
        ("> f", 4, "a command is missing at the end of the line"),
        ("@a", 3, "after @name comes a quoted prompt, or ? and text"),
        ("@a ls", 4, "after @name comes a quoted prompt, or ? and text"),
        ('@ "x"', 1, "@ and the name of a context"),
        ("?", 1, "an empty prompt"),
        ('ls | ""', 6, "an empty prompt"),
        ("'  '", 1, "an empty prompt"),
        ("a &", 3, "not in this version: & (jobs"),
        ("ls 3>f", 4, "not in this version: redirecting other streams"),
        ("ls >&x", 4, "not in this version: redirecting other streams"),
        ("diff <(a) b", 6, "not in this version: <( ) and >( )"),
        ("echo `ls`", 6, "not in this version: ` `"),
        ("echo $((1+1))", 6, "not in this version: $(( ))"),
        ("echo ${x:-1}", 6, "not in this version: ${ }"),
        ('echo "${#x}"', 7, "not in this version: ${ }"),
        ("(ls)", 1, "not in this version: ( )"),
    ],
)
def test_mistakes(text: str, column: int, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert caught.value.message.startswith(message)
    assert (caught.value.line, caught.value.column) == (1, column)


def test_the_mark_is_under_the_mistake() -> None:
    with pytest.raises(ParseError) as caught:
        parse('ls\n\techo "a b" | | wc\nls')
    assert caught.value.line == 2
    assert caught.value.pointer() == '  \techo "a b" | | wc\n  \t             ^'
