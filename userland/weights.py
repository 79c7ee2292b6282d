"""What commands take as a nice, and whom they may name by a group."""

import re

import click

NICE = click.IntRange(-20, 19)


class GroupName(click.ParamType[str]):
    """A name of a group of tasks."""

    name = "group"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
            self.fail(f"{value!r} is no name of a group: up to 64 of A-Z a-z 0-9 . _ -", param, ctx)
        return value


GROUP = GroupName()


def pid_of(word: str) -> int:
    """Return a pid; a usage error if a word is none."""
    if word.isascii() and word.isdecimal() and len(word) < 16:
        return int(word)
    raise click.BadParameter(f"{word!r} is no pid")


def pids_of(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> tuple[int, ...]:
    """Return the pids that words are; the callback of an argument."""
    return tuple(map(pid_of, words))
