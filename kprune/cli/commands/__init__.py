"""The subcommands of `kprune`, one file each."""

from ..options import Command
from .inspect import INSPECT
from .lottery import LOTTERY
from .sensitivity import SENSITIVITY
from .sweep import SWEEP
from .train import TRAIN

COMMANDS: dict[str, Command] = {command.name: command for command in (TRAIN, INSPECT, SENSITIVITY, SWEEP, LOTTERY)}
"""The subcommands by name."""
