"""Which errors are the user's, and how they are told: one line, and exit code 2.

An error is the user's if a ``raise`` statement of this package raised it as ValueError, TypeError
or ImportError, since these say what is wrong and what to do; or if it is an OSError, since that is
about the user's files. What the user's own model, transform or callable raises becomes such an
error where it is called. All other errors are faults of this package or of a library: Python prints
their traceback and ends with exit code 1.

The exit codes of all commands: 0, everything was done; 1, a fault of ours; 2, something is wrong
with what the user asked for, or with at least one image, while the others were done; 130, the
command was interrupted (Ctrl-C or SIGTERM).
"""

from __future__ import annotations

import dis
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

import captum_clustered
from captum_clustered._files import is_full, printable

__all__ = [
    "USER_ERROR",
    "command",
    "is_the_users",
    "one_line",
    "report",
    "reported",
    "say",
    "short_warnings",
    "working_directory_on_path",
]

USER_ERROR = 2
"""The exit code when something is wrong with what the user asked for."""

_PROGRAM = "captum-clustered"
_PACKAGE = os.path.join(str(Path(captum_clustered.__file__).parent), "")
_RAISE = dis.opmap["RAISE_VARARGS"]


def is_the_users(error: BaseException) -> bool:
    """Whether an error tells the user what is wrong, rather than us.

    Example::

        >>> is_the_users(FileNotFoundError("photo.jpg")), is_the_users(ValueError("no traceback"))
        (True, False)
    """
    if isinstance(error, OSError):
        return True
    if not isinstance(error, (ValueError, TypeError, ImportError)):
        return False
    end = error.__traceback__
    while end is not None and end.tb_next is not None:
        end = end.tb_next
    if end is None:
        return False
    code = end.tb_frame.f_code
    # `int("x")` raises a ValueError in our file too, but not by a statement of ours
    return code.co_filename.startswith(_PACKAGE) and code.co_code[end.tb_lasti] == _RAISE


@contextmanager
def reported(debug: bool = False) -> Iterator[None]:
    """Ends the command with one line if something is wrong with what the user asked for.

    Args:
        debug (bool, optional): Whether to print the traceback as well. Default: False

    Raises:
        typer.Exit: In place of such an error, with exit code 2.
    """
    try:
        yield
    except Exception as error:
        if not is_the_users(error):
            raise
        if debug:
            traceback.print_exception(error)
        report(one_line(error))
        raise typer.Exit(USER_ERROR) from error


def report(line: str, kind: str = "error") -> None:
    """Prints a line on the standard error stream, above a progress bar if there is one."""
    _print(f"{_PROGRAM}: {kind}: {line}", sys.stderr)


def say(line: str) -> None:
    """Prints a line on the standard output, above a progress bar if there is one."""
    _print(line, sys.stdout)


def _print(line: str, stream: Any) -> None:
    from tqdm import tqdm

    encoding = getattr(stream, "encoding", None) or "utf-8"
    # a file may have any name, which must neither stop the command nor steer the terminal
    shown = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    tqdm.write(shown, file=stream)


def one_line(error: BaseException) -> str:
    """The message of an error in one line, or the error's type if it has none."""
    text = " ".join(str(error).split())
    if is_full(error) and "room" not in text:
        text += ". Make room, and start the same command again."
    return text or type(error).__name__


@contextmanager
def command(debug: bool = False) -> Iterator[None]:
    """What all commands stand in: short warnings and errors, and SIGTERM ends like Ctrl-C.

    Args:
        debug (bool, optional): Whether to print the traceback of every error. Default: False

    Raises:
        typer.Exit: As :func:`reported`.
    """
    with _terminable(), short_warnings(), working_directory_on_path(), reported(debug):
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone may set it
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Shows each warning once, in one line, without the code that raised it.

    Python would show it for every row of an evaluation, since each context that catches warnings
    makes it forget what it has shown.
    """
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        line = " ".join(str(message).split())
        if line not in shown:
            shown.add(line)
            report(line, "warning")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def working_directory_on_path() -> Iterator[None]:
    """Lets ``module:callable`` name a module in the working directory, as ``python -m`` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
