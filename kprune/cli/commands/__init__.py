"""The subcommands of `kprune`, one file each."""

from ..options import Command
from .advise import ADVISE
from .export import EXPORT
from .inspect import INSPECT
from .lottery import LOTTERY
from .search import SEARCH
from .selftest import SELFTEST
from .sensitivity import SENSITIVITY
from .sweep import SWEEP
from .train import TRAIN

_ALL = (TRAIN, INSPECT, EXPORT, ADVISE, SEARCH, SENSITIVITY, SWEEP, LOTTERY, SELFTEST)
COMMANDS: dict[str, Command] = {command.name: command for command in _ALL}
"""The subcommands by name."""
