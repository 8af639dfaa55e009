"""Flags and subcommands built on absl, where each command has its own flags and help."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags

from ..util.checks import did_you_mean


class _OneOf(flags.EnumParser):
    """A parser that accepts a fixed set of words and suggests a similar word if the given one is unknown."""

    def __init__(self, words: Sequence[str]):
        super().__init__(list(words))

    def parse(self, argument: str) -> str:
        try:
            return super().parse(argument)
        except ValueError as error:
            raise ValueError(f"{error}{did_you_mean(argument, self.enum_values)}".rstrip(".")) from None


@dataclass(frozen=True)
class Option:
    """A command-line flag.

    Attributes:
        name: without the dashes.
        default: its value when it is not given; None for a flag that stands for nothing then.
        help: one line.
        kind: what its value is: str, int, float, bool or list (words with commas between them, which its default is
            written as, too); or a tuple of the values that it takes.
        check: what a value must satisfy, and the sentence that says so, or a function of the value that returns it.
        word: what the help writes for a value of kind str.
    """

    name: str
    default: Any
    help: str
    kind: type | tuple[str, ...] = str
    check: tuple[Callable[[Any], bool], str | Callable[[Any], str]] | None = None
    word: str = "PATH"

    def define(self, values: flags.FlagValues) -> None:
        """Add the flag to `values`."""
        if isinstance(self.kind, tuple):
            flags.DEFINE(_OneOf(self.kind), self.name, self.default, self.help, flag_values=values)
        else:
            kinds = {str: "string", int: "integer", float: "float", bool: "boolean", list: "list"}
            getattr(flags, f"DEFINE_{kinds[self.kind]}")(self.name, self.default, self.help, flag_values=values)
        if self.kind is str:
            flags.register_validator(
                self.name, lambda v: v is None or "\0" not in v, "must not contain NUL characters", flag_values=values
            )
        if self.check is not None:
            test, says = self.check

            def check(value: Any) -> bool:
                if value is None or test(value):
                    return True
                raise flags.ValidationError(says if isinstance(says, str) else says(value))

            flags.register_validator(self.name, check, flag_values=values)

    @property
    def usage(self) -> str:
        """The flag as the user types it."""
        if isinstance(self.kind, tuple):
            return f"--{self.name}=NAME"
        return f"--{self.name}" + {bool: "", int: "=N", float: "=X", str: f"={self.word}", list: "=A,B"}[self.kind]

    @property
    def line(self) -> str:
        """The flag's line in the help."""
        shown = "" if self.default is None else f" [{'off' if self.default is False else self.default}]"
        return f"  {self.usage:<21}{self.help}{shown}"


@dataclass(frozen=True)
class Command:
    """A subcommand with its name, its help text, and the function that runs it."""

    name: str
    summary: str
    arguments: str
    example: str
    options: tuple[Option, ...]
    notes: str
    run: Callable[[Any, list[str]], None]

    def parse(self, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
        """Return the flags' values and the remaining arguments; raise `flags.Error` if they are invalid."""
        values = flags.FlagValues()
        values.set_gnu_getopt(True)  # flags may follow the arguments
        for option in self.options:
            option.define(values)
        try:
            arguments = values([f"kprune {self.name}", *argv])[1:]
        except flags.UnrecognizedFlagError as error:
            argument = error.flagname.upper()
            if argument not in self.arguments.split():
                raise
            raise flags.Error(f"{argument} is an argument, not a flag. Example: {self.example}") from error
        expected = len(self.arguments.split())
        if len(arguments) != expected:
            wanted = f"expected {self.arguments}" if expected else "expected flags only"
            raise flags.Error(f"{wanted}, got {' '.join(arguments) or 'nothing'}")
        return values, arguments

    @property
    def help(self) -> str:
        """The text that `--help` prints."""
        usage = " ".join(word for word in (f"kprune {self.name}", self.arguments, "[flags]") if word)
        lines = [option.line for option in self.options]
        wrapped = [textwrap.fill(line, 118, subsequent_indent=" " * 10) for line in self.notes.splitlines()]
        notes = "\n" + "\n".join(wrapped) + "\n" if self.notes else ""
        return (
            f"{self.summary}\n\nUsage:    {usage}\nExample:  {self.example}\n\n"
            f"Flags [default]:\n" + "\n".join(lines) + f"\n{notes}"
        )
