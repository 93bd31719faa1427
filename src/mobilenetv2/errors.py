"""What can go wrong, in words for the person who asked.

Every message says what was wrong, where (file, flag, line) and what to do. The command line prints
it without a traceback and exits with ``exit_code``.

::

    Mobilenetv2Error              (exit code 1)
    ├── UserError                 the user asked for something impossible (exit code 2)
    │   ├── ConfigError           a flag or a key of a YAML file
    │   ├── DataError             a data set, a folder or a picture
    │   └── ModelFileError        a model, checkpoint or weights file
    ├── WorkFailed                the work failed or a promised check was not met
    │   └── NonFiniteLoss         training met a loss that is not a number
    └── Interrupted               stopped by a signal, everything saved (130 or 143)
"""


class Mobilenetv2Error(Exception):
    """Base of everything that this package raises on purpose."""

    exit_code = 1


class UserError(Mobilenetv2Error):
    """The user asked for something impossible."""

    exit_code = 2


class ConfigError(UserError):
    """A flag, or a key of a YAML file, that cannot be used."""


class DataError(UserError):
    """A data set, folder or picture that cannot be used."""


class ModelFileError(UserError):
    """A model, checkpoint or weights file that cannot be used."""


class WorkFailed(Mobilenetv2Error):  # noqa: N818
    """The work failed, or a promised check was not met."""


class NonFiniteLoss(WorkFailed):
    """Training met a loss that is infinite or not a number."""


class Interrupted(Mobilenetv2Error):  # noqa: N818
    """Stopped by a signal after everything was saved."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    r"""What an error of another program says, in a line; its kind where it says nothing.

    >>> first_line(MemoryError()), first_line(RuntimeError("one\ntwo"))
    ('MemoryError', 'one')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
