"""The command line: the only place that parses arguments and words errors for the terminal.

Each command is a settings model, which tyro turns into flags and help, and a function. PyTorch is
imported inside the functions, so that help comes at once.
"""

from mobilenetv2.cli.commands import COMMANDS, main

__all__ = ["COMMANDS", "main"]
