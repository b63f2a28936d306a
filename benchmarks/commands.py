"""What the two programs, `benchmarks` and `benchmarks.ultrasound`, have in common."""

from __future__ import annotations

import sys

import typer

__all__ = ["program", "run", "say"]


def program(name: str, purpose: str) -> typer.Typer:
    """A program without commands yet.

    Args:
        name (str): How it is called, such as ``python -m benchmarks``.
        purpose (str): One line for its help.
    """
    return typer.Typer(
        name=name,
        help=purpose,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def say(line: str) -> None:
    """Tells what goes on, apart from the results."""
    typer.echo(line, err=True)


def run(app: typer.Typer, *, errors: tuple[type[Exception], ...] = ()) -> None:
    """Runs a program. Errors that the user can correct are one line, with exit code 2.

    Args:
        app (Typer): The program.
        errors (tuple, optional): More types of such errors, beside `ValueError` and `ImportError`.
            Default: ()
    """
    try:
        app()
    except (ValueError, ImportError, *errors) as error:
        say(f"{app.info.name}: {error}")
        sys.exit(2)
