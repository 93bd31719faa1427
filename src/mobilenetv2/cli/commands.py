"""The table of commands, and the way into them."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from mobilenetv2 import __version__
from mobilenetv2.cli.arguments import PURPOSE
from mobilenetv2.cli.compare import compare_command
from mobilenetv2.cli.inspect import inspect_command
from mobilenetv2.cli.measure import evaluate_command
from mobilenetv2.cli.predict import predict_command
from mobilenetv2.cli.ship import benchmark_command, demo_command, export_command
from mobilenetv2.cli.train import find_lr_command, train_command
from mobilenetv2.cli.voice import complain, is_first
from mobilenetv2.complaints import suggestion
from mobilenetv2.cores import share_cores
from mobilenetv2.errors import ConfigError, Interrupted, Mobilenetv2Error, first_line
from mobilenetv2.machine_memory import ran_out


@dataclass(frozen=True)
class Command:
    """A word on the command line: its arguments to an exit code, and what it does in a line."""

    run: Callable[[list[str]], int]
    summary: str


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 impossible request, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    share_cores()
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a log in another encoding is no reason to stop
            stream.reconfigure(errors="replace")
    try:
        code = _ended(arguments)
        sys.stdout.flush()
    except Mobilenetv2Error as error:
        if is_first() or not isinstance(error, Interrupted):
            complain(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        complain("interrupted")
        code = 130
    except PermissionError as error:  # such as a folder above the one that was named
        complain(f"{error.filename}: no permission. Change its permissions, or name another place.")
        code = 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        code = 0
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        smaller = "smaller pictures (--image-size), a smaller --batch-size or "
        advice = f"{smaller if arguments[0] in PURPOSE else ''}fewer other programs leave more"
        complain(f"too little memory ({first_line(error)}); {advice}")
        code = 1
    except OSError as error:  # such as a name that is too long
        complain(f"{error.filename or 'cannot go on'}: {error.strerror or error}")
        code = 2 if error.filename else 1
    _let_go_of_output()
    sys.exit(code)


def _replace_closed_streams() -> None:
    """Whoever starts this with ``>&-`` wants to hear nothing, not that nothing can be said."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123


def _ended(arguments: list[str]) -> int:
    """The exit code of a command, also of one that only shows its help."""
    try:
        return _dispatch(arguments)
    except SystemExit as ended:
        if isinstance(ended.code, int):
            return ended.code
        raise


def _let_go_of_output() -> None:
    """What cannot be written is no reason for Python to complain in its last moment."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    word = arguments[0] if arguments else "--help"
    if word in ("-h", "--help"):
        _print_help()
        return 0
    if word == "--version":
        print(f"mobilenetv2 {__version__}")
        return 0
    if word not in COMMANDS:
        raise ConfigError(
            f"{word}: no such command ({', '.join(COMMANDS)}){suggestion(word, COMMANDS)}"
        )
    return COMMANDS[word].run(arguments[1:])


def _print_help() -> None:
    print("usage: mobilenetv2 COMMAND [ARGUMENTS]\n")
    print("From a folder of pictures to a proven MobileNetV2 classifier.\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<10} {command.summary}")
    print("\n`mobilenetv2 COMMAND --help` shows the arguments of a command.")


COMMANDS = {
    "train": Command(train_command, "train a classifier on a data set or a folder of pictures"),
    "evaluate": Command(evaluate_command, "measure a classifier on pictures with known labels"),
    "predict": Command(predict_command, "name what pictures show"),
    "compare": Command(compare_command, "show runs beside each other, and means over seeds"),
    "export": Command(export_command, "write a proven file that runs without this program"),
    "demo": Command(demo_command, "try a classifier in the browser of this computer"),
    "benchmark": Command(benchmark_command, "find what runs a classifier fastest on this machine"),
    "find-lr": Command(find_lr_command, "suggest a learning rate by a range test"),
    "inspect": Command(inspect_command, "show a model's layers and costs, or a folder's health"),
}
