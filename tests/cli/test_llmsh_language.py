"""What a script can say besides prompts: compounds, variables, redirections, $( ), set."""

import io
import os
import sys
from pathlib import Path

import pytest

from userland.asking import Sampling
from userland.llmsh.script import check_script, run_script
from userland.llmsh.shell import Shell
from userland.llmsh.state import State


class Runner:
    """Runs scripts in a directory of their own; nothing of a shell may be left open."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, script: str, *arguments: str, status: int = 0) -> str:
        """Run a script; return what it has written to both streams."""
        state = State(Sampling(0.0), sys.stdout, sys.stderr)
        state.variables.arguments = list(arguments)
        before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208  names, not paths
        assert run_script(Shell(state), io.StringIO(script)) == status, self._capfd.readouterr()
        assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        out, err = self._capfd.readouterr()
        return out + err


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Runner:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path))
    return Runner(capfd)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("if true; then echo a; else echo b; fi", "a"),
        ("if false; then echo a; elif true; then echo b; else echo c; fi", "b"),
        ("if false; then echo a; fi; echo $?", "0"),
        ("if ! false\nthen\n\n# x\n echo a\nfi", "a"),
        ("for x in 1 '2 3' $none; do echo \"<$x>\"; done", "<1> <2 3>"),
        ("for x\ndo echo $x\ndone", "one two words"),
        ("for x in *.none; do echo $x; done", "*.none"),
        ("for x in; do echo $x; done; echo end", "end"),
        ("while ! test -e f; do echo once; echo > f; done", "once"),
        ("until test -e f; do echo once; echo > f; done; rm f", "once"),
        ("for a in 1 2 3; do if test $a = 2; then continue; fi; echo $a; done", "1 3"),
        ("for a in 1 2; do for b in 1 2; do echo $a$b; continue 2; done; done", "11 21"),
        ("for a in 1 2; do while true; do break 2; done; echo no; done; echo end", "end"),
        ("{ echo a; echo b; } | tr ab AB; { echo c; } > f; cat f", "A B c"),
        ("for x in 1 2; do echo $x; done | sort -r | cat", "2 1"),
        ("printf '1 2\\n3\\n4' | while read a b; do echo \"$a/$b\"; done", "1/2 3/ 4/"),
        ("ls nosuch 2> f; grep -c nosuch f", "1"),
        ("sh -c 'echo a >&2' 2>&1 | tr a b; sh -c 'echo a >&2' |& tr a c", "b c"),
        ("ls nosuch . &> f; ls nosuch . &>> f; grep -c nosuch f", "2"),
        ("sh -c 'echo a; echo b >&2' 2>&1 >f; cat f", "b a"),
        ("sh -c 'echo a; echo b >&2' >f 2>&1; cat f", "a b"),
        ("pwd extra 2> f; cat f", "llmsh: pwd takes no arguments"),
        ("if true; then pwd extra; fi 2> f; cat f", "llmsh: pwd takes no arguments"),
        ("x=1; cat <<E; echo after\n$x $(echo \"in\") \\$x\nE", "1 in $x after"),
        ("cat <<'E' | tr a b\n$x a\nE", "$x b"),
        ("cat <<-E\n\tone\n\t\ttwo\n\tE", "one two"),
        ("cat <<A <<B\na\nA\nb\nB", "b"),
        ("for x in 1 2; do cat <<E\n$x\nE\ndone", "1 2"),
        ("cat <<< 'a  b' | tr a A", "A  b"),
        ("x='a  b'; y=$x; echo \"$y\" $y", "a  b a b"),
        ("x=1 y=$x; echo $y; x=2 sh -c 'echo $x'; echo $x", "1 2 1"),
        ("x=5; sh -c 'echo [$x]'; export x; sh -c 'echo [$x]'; unset x; echo [$x]", "[] [5] []"),
        ("echo $# \"$@\" $1 ${2}; shift; echo $#:$*", "2 one two words one two words 1:two words"),
        ("set -- x 'y z'; for a in \"$@\"; do echo \"$a\"; done; echo $2", "x y z y z"),
        ('for a in "$@" "$@x"; do echo "<$a>"; done', "<one> <two words> <one> <two wordsx>"),
        ("shift 2; echo $# \"$@\" end; shift 2> f || echo no", "0 end no"),
        ("echo $(echo a; echo b) \"$(echo 'c  d'; echo; echo)\"", "a b c  d"),
        ("echo \"$(echo \"a $(echo ')') b\")\"", "a ) b"),
        ("x=$(false) || echo $?; x=$(exit 7) || echo $?; echo on", "1 7 on"),
        ("x=1; y=$(x=2; cd /; echo $x); echo $x $y; test \"$(cd /; pwd)\" != \"$(pwd)\"", "1 2"),
        ("$(echo echo) $(printf 'a\\0b')", "ab"),
        ("! true; echo $?; ! false; echo $?; ! true | false; echo $?", "1 0 0"),
        ("alias e='echo a' f=e; e b; f c; unalias e; alias", "a b a c alias f='e'"),
        ("alias echo='echo x'; echo a; \\echo b", "x a b"),
        ("echo 'echo $1 $2; v=3' > s; source s x; echo $v $1", "x 3 one"),
        ("false | true; echo $?; set +o pipefail; false | true; echo $?", "1 0"),
        ("echo a # b\necho a#b", "a a#b"),
        ("ec\\\nho a\\\nb", "ab"),
        ("true && { false || echo a; } && ! false && echo b", "a b"),
        ("read x y <<< 'a b c'; echo $y; read x < /dev/null || echo $?", "b c 1"),
    ],
)  # fmt: skip
def test_scripts(run: Runner, script: str, said: str) -> None:
    assert run(script, "one", "two words").replace("\n", " ").strip() == said


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("set -e; false || true; ! true; if false; then true; fi; echo a; false; echo b", 1, "a"),
        ("set -e; for x in 1 2; do echo $x; sh -c \"exit $x\"; done; echo no", 1, "1"),
        ("set -e; while false; do true; done; false && true; echo on", 0, "on"),
        ("set -e; { false; }; echo no", 1, ""),
        ("set -e; x=$(false); echo no", 1, ""),
        ("set -e; x=$(false; echo kept); echo no", 1, ""),
        ("set -e; (ls)", 2, None),
        ("set -u; echo $nosuch; echo no", 1, "llmsh: $nosuch has no value, and set -u is on"),
        ("set -u; echo \"$1 $_ $?\"; echo \"$@\"", 0, "one  0\none two words".replace("\n", " ")),
        ("set -x; a=1; for x in 'b c'; do echo $x; done 2> f; { pwd; } > g", 0,
         "b c + a=1 + pwd"),
        ("set -euo pipefail; set temp=0 seed=7; false | true; echo no", 1, ""),
        ("x=$(exit 3; echo no); echo $?; exit $(echo 4)", 4, "3"),
        ("for x in 1; do exit 5; done | cat; echo no", 5, ""),
        ("x=$(yes)", 1, "llmsh: a command has written more than 1 MiB, which is too much"
         " to hold (E2BIG)   try   let it write to a file"),
        ("break", 2, "llmsh: break: there is no loop here"),
        ("for x in 1 2; do echo $(break); done", 0, None),
        ("_=1; echo $?; export usage=1; unset ctx", 1, None),
        ("shift 3", 1, "llmsh: shift 3: there are 2 arguments"),
        ("read 1x", 2, "llmsh: read: '1x' cannot be a variable"),
        ("source nosuch", 1, "llmsh: cannot read nosuch: No such file or directory"),
        ("echo source s > s; source s", 1, "llmsh: s: 10 scripts within each other"),
        ("echo 'a |' > s; source s", 2, None),
        ("alias a='b | c'; a", 2, "llmsh: alias a='b | c' is not the words of one command"),
        ("cat < nosuch > made; test -e made", 1,
         "llmsh: cannot open nosuch: No such file or directory"),
        ("echo x > /dev/full", 1, None),
        ("for x in 1 2; do pwd; done > /dev/full", 74, None),
        ("cat <<< x > nosuch/f", 1, "llmsh: cannot open nosuch/f: No such file or directory"),
        ("X=$(printf 'a\\001b') sh -c 'echo $X'", 0, "a\x01b"),
    ],
)  # fmt: skip
def test_how_it_ends(run: Runner, script: str, status: int, said: str | None) -> None:
    out = run(script, "one", "two words", status=status)
    assert said is None or out.replace("\n", " ").strip() == said


def test_a_loop_between_programs_does_not_wait_for_itself(run: Runner) -> None:
    much = "seq -f %01000.0f 150"
    script = f"{much} | cat | while read x; do y=$x; done | cat | {{ {much}; }} | cat | wc -c"
    assert run(f"pwd | cat | while read x; do {script}; done").strip() == "150150"
    loop = f"for x in 1 2; do {much}; done | while read x; do last=$x; done; echo $last"
    assert run(loop).strip("0\n") == "15"


def test_parsing_only_runs_nothing(run: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    shell = Shell(State(Sampling(0.0), sys.stdout, sys.stderr))
    assert check_script(shell, io.StringIO("echo a > made\nfor x in a\ndo exit 3; done\n")) == 0
    assert check_script(shell, io.StringIO("echo a > made\nif true\n")) == 2
    assert "line 2, column 8: fi is missing" in capfd.readouterr().err
    assert not Path("made").exists()


def test_a_long_compound_is_not_parsed_at_each_of_its_lines(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from userland.llmsh import script as module

    parsed: list[str] = []
    parse = module.parse
    monkeypatch.setattr(module, "parse", lambda text: (parsed.append(text), parse(text))[1])
    run("if true\nthen\n" + "x=1\n" * 2000 + "fi\ncat <<END\n" + "a\n" * 2000 + "END\n")
    assert len(parsed) <= 6


@pytest.mark.parametrize("depth", [24, 100, 3000])
def test_nesting_has_an_end(run: Runner, depth: int) -> None:
    text = "x"
    for _ in range(min(depth, 100)):
        text = f"$(echo {text})"
    text = text if depth < 3000 else "echo " + "$(" * depth
    out = run(f"echo {text}\n", status=0 if depth < 25 else 2)
    assert out == "x\n" if depth < 25 else "more than 25 compounds and $(" in out
    blocks = "{ " * depth + "echo x; " + "}; " * depth
    out = run(blocks, status=0 if depth < 25 else 2)
    assert out == "x\n" if depth < 25 else "more than 25 compounds and $(" in out
    again = "echo 'x=$(source s)' > s; x=$(source s)"  # as deep as can be without being written
    assert "within each other" in run(again, status=1)
