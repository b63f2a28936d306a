"""Results on disk: a line for each finished case during a run, one checked JSON file after it.

While a command runs, ``NAME.jsonl`` in the folder of the results holds its settings and machine in
the first line and a finished case in each line after it. A killed run leaves this file behind, and
the same command goes on from there. At the end everything is in ``NAME.json``, which must fit
``schema.json``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jsonschema
import torch

from benchmarks.files import differing, write_json
from captum_clustered._files import without_nan

__all__ = ["SCHEMA", "check", "collect", "machine", "read", "reason"]

Row = dict[str, Any]

SCHEMA: dict[str, Any] = json.loads(
    Path(__file__).with_name("schema.json").read_text(encoding="utf-8")
)
"""What a file of results must look like."""

_ROOT = Path(__file__).parents[1]
_PACKAGES = (
    "captum-clustered",
    "captum",
    "grad-cam",
    "numpy",
    "scikit-learn",
    "timm",
    "torch",
    "torchcam",
    "torchvision",
)


def machine() -> dict[str, Any]:
    """The machine and the software, without names of persons, hosts or folders."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that is checked out, with a plus sign where the library differs from it."""
    command = ["git", "-C", str(_ROOT)]
    try:
        commit = _output([*command, "rev-parse", "--short=12", "HEAD"])
        changed = _output([*command, "status", "--porcelain", "--", "captum_clustered"])
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changed else commit


def _output(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return run.stdout.strip()


def collect(
    name: str,
    out: Path,
    settings: Mapping[str, Any],
    cases: Iterable[str],
    measure: Callable[[str], list[Row]],
    say: Callable[[str], object] = print,
    finish: Callable[[list[Row]], Mapping[str, Any]] | None = None,
) -> Path:
    """Measures the cases that an earlier, killed run has not measured, and writes the results.

    Args:
        name (str): Name of the command and of the file.
        out (Path): Folder of the results.
        settings (mapping): What the rows depend on.
        cases (iterable of str): The keys of the cases.
        measure (callable): From a key to the rows of the case.
        say (callable, optional): Called with a line that says what goes on. Default: print
        finish (callable, optional): From all rows to further entries of the file. Default: None

    Returns:
        *Path*: The file.

    Raises:
        ValueError: If the folder has rows of other settings or of another machine.
    """
    out.mkdir(parents=True, exist_ok=True)
    head = json.loads(json.dumps({"settings": dict(settings), "machine": machine()}))
    partial, path = out / f"{name}.jsonl", out / f"{name}.json"
    done = _resume(partial, head)
    cases = list(cases)
    for number, case in enumerate(cases, start=1):
        if case in done:
            continue
        say(f"{name} {number}/{len(cases)}: {case}")
        done[case] = measure(case)
        with partial.open("a", encoding="utf-8") as file:
            file.write(_line({"case": case, "rows": done[case]}))
    rows = [{"case": case, **row} for case in cases for row in done[case]]
    found = {"benchmark": name, **head, "rows": rows, **(finish(rows) if finish else {})}
    check(without_nan(found))
    write_json(path, found)
    partial.unlink()
    say(f"{path}: {len(rows)} rows")
    return path


def _line(value: Any) -> str:
    return json.dumps(without_nan(value), ensure_ascii=False, allow_nan=False) + "\n"


def _resume(partial: Path, head: dict[str, Any]) -> dict[str, list[Row]]:
    lines = list(_whole_lines(partial))
    if not lines:
        partial.write_text(_line(head), encoding="utf-8")
        return {}
    other = differing(lines[0], head)
    if other:
        raise ValueError(
            f"`out` must be a folder without rows of another {' and '.join(other)}; got "
            f"{partial}. Remove that file to begin anew, or name another folder."
        )
    partial.write_text("".join(map(_line, lines)), encoding="utf-8")  # without a torn last line
    return {line["case"]: line["rows"] for line in lines[1:]}


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def reason(error: Exception) -> str:
    """Why a case failed, in one line.

    Example::

        >>> reason(ValueError("no   maps"))
        'ValueError: no maps'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def check(found: Mapping[str, Any]) -> None:
    """Checks results against the schema.

    Raises:
        ValueError: If they do not fit; the message says where.
    """
    errors = list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(found))
    if errors:
        error = jsonschema.exceptions.best_match(errors)
        raise ValueError(f"results must fit schema.json; at {error.json_path}: {error.message}.")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """All checked results of a folder by the name of their command.

    Raises:
        ValueError: If a file does not fit the schema.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        check(found)
        results[found["benchmark"]] = found
    return results
