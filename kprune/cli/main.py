"""The command line, `kprune COMMAND`, where each command has its own file in kprune/cli/commands.

Each command has flags of its own (an absl `FlagValues`), so its help shows what it takes and nothing else.
"""

from __future__ import annotations

import io
import logging as standard
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from .._version import __version__
from ..util.checks import did_you_mean
from ..util.tables import printable
from .commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `kprune`; those of the process by default.

    Returns:
        The exit status: 0, 1 after an error (one line on stderr), 2 if the words make no sense, 130 after Ctrl-C.

    >>> from kprune.cli.main import main
    >>> main(["--version"])  # doctest: +ELLIPSIS
    kprune ...
    0
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks the letters of a layer's name shows the rest
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        return _refuse(_overview())
    if words[0] in ("--help", "-h", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"kprune {__version__}")
        return 0
    if words[0] not in COMMANDS:
        hint = did_you_mean(words[0], COMMANDS).rstrip(".")
        known = ", ".join(COMMANDS)
        return _refuse(f"kprune: unknown command {words[0]!r}; the commands are {known}{hint} (see kprune --help)")
    command = COMMANDS[words[0]]
    if {"--help", "-h"} & set(words[1:]):
        print(command.help, end="")
        return 0
    try:
        values, arguments = command.parse(words[1:])
    except flags.Error as error:
        return _refuse(f"kprune {command.name}: {error} (see kprune {command.name} --help)")
    _set_up_logging(values.verbose)
    try:
        for name in {"plot", "csv"} & set(values):
            if values[name].value:  # before the work, so that a folder that cannot be made is known at once
                Path(values[name].value).parent.mkdir(parents=True, exist_ok=True)
        command.run(values, arguments)
    except KeyboardInterrupt:
        return _refuse("kprune: interrupted", 130)
    except Exception as error:
        if _is_interrupt(error):
            return _refuse("kprune: interrupted", 130)
        if not isinstance(error, (ValueError, OSError, ImportError, RuntimeError)):
            raise
        if values.debug:
            traceback.print_exc()
        return _refuse(f"kprune: error: {' '.join(str(error).split())}", 1)
    return 0


def _refuse(message: str, status: int = 2) -> int:
    print(printable(message), file=sys.stderr)
    return status


def _is_interrupt(error: BaseException) -> bool:
    """Return whether Ctrl-C caused the error, even if TensorFlow replaced the interrupt with another error."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, KeyboardInterrupt) or "KeyboardInterrupt" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _set_up_logging(verbose: bool) -> None:
    """Send absl's log to stderr without dates or line numbers, and show only errors from TensorFlow's log."""
    flags.FLAGS.mark_as_parsed()  # or absl warns that it logs too early
    standard.getLogger("tensorflow").setLevel(standard.ERROR)
    logging.get_absl_logger().addFilter(_is_worth_showing)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(standard.Formatter("%(levelname)s: %(message)s"))
    logging.set_verbosity(logging.INFO if verbose else logging.WARNING)


def _is_worth_showing(record: standard.LogRecord) -> bool:
    # Loading what JAX exported, TensorFlow warns of missing gradients, which nothing asks for.
    return record.levelno >= standard.ERROR or f"{os.sep}tensorflow{os.sep}" not in record.pathname


def _overview() -> str:
    commands = "\n".join(f"  kprune {c.name:<13}{c.summary}\n{'':22}{c.example}\n" for c in COMMANDS.values())
    return (
        f"kprune trains sparse neural networks with Keras and reports their sparsity.\n\n{commands}\n`kprune "
        "COMMAND --help` lists the flags of a command; `kprune --version` prints the version.\nSparsity is the "
        "fraction of weights that are zero: 0.9 keeps one weight in ten."
    )


if __name__ == "__main__":
    sys.exit(main())
