"""Writes one page of the reference for each public module; a module that is new needs no entry.

An object stands on one page only: that of the package which exports it, else its module's.
"""

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path

import captum_clustered

PACKAGE = captum_clustered.__name__
CHAPTERS = {
    "Explainers": ["captum_clustered", "methods"],
    "Parts of an explainer": [
        "clustering",
        "adaptive",
        "weighting",
        "shapley",
        "heatmap",
        "layers",
        "fills",
        "calibration",
        "targets",
        "explainers.results",
    ],
    "Judging heat maps": ["metrics", "metrics.streaming", "statistics", "evaluation"],
    "Around them": ["visualization", "stability", "models", "testing", "app.cli"],
}
REST = "Engine and inner modules"


@cache
def public_modules() -> list[str]:
    """All modules whose names have no leading underscore, the package first."""
    found = pkgutil.walk_packages(captum_clustered.__path__, f"{PACKAGE}.")
    names = [info.name for info in found]
    return [PACKAGE, *sorted(n for n in names if not any(p[0] == "_" for p in n.split(".")))]


def exported(name: str) -> list[str]:
    """What a module documents: its `__all__`, without what has its page elsewhere."""
    above = name.rpartition(".")[0]
    taken = set()
    while above:
        taken |= set(getattr(import_module(above), "__all__", ()))
        above = above.rpartition(".")[0]
    module = import_module(name)
    own = [n for n in getattr(module, "__all__", ()) if n not in taken and not n.startswith("__")]
    return [n for n in own if not _is_guest(getattr(module, n), n, name)]


def _is_guest(value: object, name: str, module: str) -> bool:
    """Whether it was made, and is exported, by a module that is no part of this one."""
    home = getattr(value, "__module__", None)
    if not isinstance(home, str) or home not in public_modules() or home == module:
        return False
    return not home.startswith(f"{module}.") and name in import_module(home).__all__


def chapters() -> dict[str, list[str]]:
    """The modules by chapter; the last holds what no chapter names."""
    modules = public_modules()
    named = {
        title: [n for n in (_full(name) for name in names) if n in modules]
        for title, names in CHAPTERS.items()
    }
    placed = {name for names in named.values() for name in names}
    return named | {REST: [n for n in modules if n not in placed and exported(n)]}


def write(folder: Path) -> None:
    """Writes the pages into a folder, and leaves alone what has not changed."""
    folder.mkdir(exist_ok=True)
    pages = {f"{name}.md": page(name) for names in chapters().values() for name in names}
    pages[f"{PACKAGE}.app.cli.md"] = command_line()
    index = [
        "# Reference",
        "",
        "Made from the docstrings. Every example in them is run by the tests.",
    ]
    for title, names in chapters().items():
        if title != REST:
            index += ["", f"## {title}", "", *_table(names)]
    index += [
        "",
        f"## {REST}",
        "",
        "[What the explainers are made of](inner.md), for contributors.",
    ]
    index += ["", "```{toctree}", ":hidden:", "", "inner", "```"]
    pages["index.md"] = "\n".join(index) + "\n"
    inner = [f"# {REST}", "", "For contributors; see also [Architecture](../architecture.md)."]
    pages["inner.md"] = "\n".join([*inner, "", *_table(chapters()[REST])]) + "\n"
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _table(names: list[str]) -> list[str]:
    lines = ["| module | |", "|---|---|"]
    lines += [f"| [{_short(name)}]({name}.md) | {_first_line(name)} |" for name in names]
    return [*lines, "", "```{toctree}", ":hidden:", "", *names, "```"]


def page(name: str) -> str:
    """The page of one module."""
    return f"""# {_short(name)}

```{{eval-rst}}
.. automodule:: {name}
   :members: {", ".join(exported(name)) or "__no_members__"}
   :show-inheritance:
```
"""


def command_line() -> str:
    """The page of the commands: the help that each prints."""
    from typer.main import get_command

    from captum_clustered.app.cli import app

    group = get_command(app)
    context = group.make_context("captum-clustered", ["--help-all"], resilient_parsing=True)
    context.terminal_width = context.max_content_width = 84
    text = [
        "# Command line",
        "",
        "What each command says of itself with `--help`.",
        "",
        "```text",
        group.get_help(context),
        "```",
    ]
    for name, command in sorted(group.commands.items()):
        inner = type(context)(command, info_name=name, parent=context)
        inner.terminal_width = inner.max_content_width = 84
        text += ["", f"## {name}", "", "```text", command.get_help(inner), "```"]
    return "\n".join(text) + "\n"


def _full(name: str) -> str:
    return name if name == PACKAGE else f"{PACKAGE}.{name}"


def _short(name: str) -> str:
    if name == f"{PACKAGE}.app.cli":
        return "Command line"
    return name if name == PACKAGE else name.removeprefix(f"{PACKAGE}.")


def _first_line(name: str) -> str:
    return (import_module(name).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
