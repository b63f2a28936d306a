"""Rules of the package as a whole: light import, imports in one direction, version, docstrings."""

import ast
import functools
import importlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import captum_clustered

NAME = "captum_clustered"
FOLDER = Path(captum_clustered.__file__).parent

# A module may import those before it. A folder stands for all its modules; the package's own
# __init__ stands where it is listed, as "".
ORDER = [
    "_checks",
    "_warn",
    "_files",
    "_notebook",
    "_pictures",
    "_modules",
    "_kmeans",
    "_ward",
    "_state",
    "_borrow",
    "_layout",
    "_copies",
    "_gradients",
    "_outputs",
    "targets",
    "heatmap",
    "statistics",
    "clustering",
    "adaptive",
    "weighting",
    "shapley",
    "fills",
    "metrics",
    "engine",
    "calibration",
    "_trials",
    "layers",
    "visualization",
    "page",
    "explainers",
    "stability",
    "testing",
    "",
    "methods",
    "models",
    "evaluation",
    "app",
    "__main__",
]
# These judge any library's heat maps, so they must not know how ours are made.
INDEPENDENT = {"statistics", "metrics"}
ENGINE = {"clustering", "weighting", "adaptive", "shapley", "engine", "explainers", "methods", ""}
MAY_IMPORT_LATE = {"app", "__main__"}  # so that help need not wait for torch
MAX_DEPTH = 6


# The import is light


def _loaded_by(statement):
    """Top-level packages that a fresh interpreter loads for a statement, less the standard ones."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    names = {name.partition(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}
    return names - sys.stdlib_module_names - {"__main__", NAME}


@functools.cache
def _loaded_by_captum():
    return frozenset(_loaded_by("import captum.attr"))


def test_import_loads_nothing_that_captum_does_not_load():
    assert "torch" in _loaded_by_captum()
    # the star also loads what the package might hand out lazily
    assert _loaded_by(f"from {NAME} import *") - _loaded_by_captum() == set()


def test_the_light_import_test_can_fail():
    heavy = {"scipy", "sklearn", "torchvision", "typer"}
    loaded = _loaded_by(f"import {NAME}, {', '.join(heavy)}")
    assert loaded - _loaded_by_captum() >= heavy


# Imports go one way


def _modules(folder):
    """Source files by module name inside the package, the package itself being ""."""
    paths = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def _imports(path, modules):
    """Pairs of an imported module of the package and when: at once, late, or for types only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    when = {id(inner): "late" for function in functions for inner in ast.walk(function)}
    checks = [n for n in ast.walk(tree) if isinstance(n, ast.If)]
    checks = [n for n in checks if ast.unparse(n.test) == "TYPE_CHECKING"]
    when |= {id(inner): "types" for check in checks for inner in ast.walk(check)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [d if d.removeprefix(f"{NAME}.") in modules else node.module for d in deeper]
        else:
            continue
        for name in names:
            if name == NAME or name.startswith(f"{NAME}."):
                yield name[len(NAME) + 1 :], when.get(id(node), "at once")


def _faults(folder):
    """All breaches of the order, as sentences."""
    modules = _modules(folder)
    for module, path in modules.items():
        stage = module.partition(".")[0]
        if stage not in ORDER:
            yield f"{module} has no place in ORDER"
            continue
        for imported, when in _imports(path, modules):
            other = imported.partition(".")[0]
            if when == "late" and stage not in MAY_IMPORT_LATE:
                yield f"{module or NAME} imports {imported} inside a function"
            if other == stage and module != imported:
                continue  # inside a folder
            if when == "types" and other == "explainers":
                continue  # what shows a result knows its form, not how it is made
            if other not in ORDER or ORDER.index(other) >= ORDER.index(stage):
                yield f"{module or NAME} imports {imported or NAME}, which does not come before it"
            if stage in INDEPENDENT and other in ENGINE:
                yield f"{module} imports {imported or NAME}, a part of the engine"


def _depth(folder):
    """Number of modules in the longest chain of imports that are made when a module loads.

    Fails on a cycle, which has no end.
    """
    modules = _modules(folder)
    below = {
        name: {part for part, when in _imports(path, modules) if when == "at once"}
        for name, path in modules.items()
    }
    known = {}

    def depth(module, above):
        assert module not in above, f"cycle: {' -> '.join([*above, module])}"
        if module not in known:  # chains meet again and again
            deeper = (depth(name, (*above, module)) for name in below[module])
            known[module] = 1 + max(deeper, default=0)
        return known[module]

    return max(depth(module, ()) for module in modules)


def test_imports_go_one_way():
    assert list(_faults(FOLDER)) == []


def test_import_chains_are_short():
    assert _depth(FOLDER) <= MAX_DEPTH


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("targets.py", f"from {NAME}.fills import masked", "targets imports fills, which does"),
        ("targets.py", f"from {NAME} import fills", "targets imports fills, which does"),
        ("targets.py", f"import {NAME}", f"targets imports {NAME}, which does not come before"),
        ("fills.py", f"def f():\n    import {NAME}.targets", "fills imports targets inside a"),
        (
            "metrics/drop.py",
            f"import {NAME}.clustering",
            "metrics.drop imports clustering",
        ),
        ("odds.py", "", "odds has no place in ORDER"),
    ],
)
def test_the_direction_test_can_fail(tmp_path, file, source, fault):
    for name in ("__init__.py", "targets.py", "fills.py", "metrics/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(_faults(tmp_path)) == []
    (tmp_path / file).write_text(source)
    (found,) = _faults(tmp_path)
    assert found.startswith(fault)


def test_a_cycle_is_found(tmp_path):
    (tmp_path / "targets.py").write_text(f"import {NAME}.fills")
    (tmp_path / "fills.py").write_text(f"import {NAME}.targets")
    with pytest.raises(AssertionError, match="cycle: fills -> targets -> fills"):
        _depth(tmp_path)


# Names that users know

ROOT = Path(__file__).parents[1]
# Every version has these, whatever happens inside.
PUBLIC = [
    "clustering",
    "adaptive",
    "weighting",
    "shapley",
    "heatmap",
    "fills",
    "calibration",
    "targets",
    "layers",
    "methods",
    "statistics",
    "stability",
    "testing",
    "visualization",
    "metrics",
    "metrics.streaming",
    "models",
    "evaluation",
]


def _named_in_documents():
    """Dotted names of this package in the README and the documents, with what is imported."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if "api" in path.parts or path.name in {"changelog.md", "architecture.md"}:
            continue
        text = path.read_text(encoding="utf-8")
        yield from re.findall(rf"\b{NAME}(?:\.[A-Za-z_]\w*)+", text)
        for module, names in re.findall(rf"from ({NAME}[\w.]*) import (\([^)]*\)|[^\n(]+)", text):
            for name in re.findall(r"[A-Za-z_]\w*(?: as \w+)?", names.strip("()")):
                yield f"{module}.{name.partition(' as ')[0]}"


def _resolve(dotted):
    """Imports a dotted name: a module, or what is in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[end:], found)
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_modules_stay(module):
    loaded = importlib.import_module(f"{NAME}.{module}")
    assert all(hasattr(loaded, name) for name in loaded.__all__)


def test_what_the_documents_name_can_be_imported():
    names = set(_named_in_documents())
    assert f"{NAME}.ClusteredLayerAblation" in names
    assert len(names) > 50, "else nothing is looked at"
    missing = []
    for name in sorted(names):
        try:
            _resolve(name)
        except (AttributeError, ModuleNotFoundError):
            missing.append(name)
    assert missing == []


# Private parts of other libraries

# What a minor release may change without a word, and the modules that may use it; the upper bounds
# on torch and captum in pyproject.toml stand for this list.
PRIVATE = {
    "_orig_mod": "_borrow",
    "torch._dynamo": "_borrow",
    "_global_forward_hooks": "_state",
    "_global_forward_pre_hooks": "_state",
    "_foreach_copy_": "_state",
    "_version": ("_state", "engine.calls"),
    "torch.utils._pytree": "engine.calls",
    "torch.utils._python_dispatch": ("_borrow", "_copies"),
    "_local_scalar_dense": "_copies",
    "_schema": "_copies",
    "_cdata": "engine.sites",
    "_BatchNorm": "engine.sites",
    "_forward_hooks": "engine.sites",
    "_forward_pre_hooks": "engine.sites",
    "_is_view": "engine.capture",
    "_global_forward_hooks_with_kwargs": "engine.capture",
    "_NormBase": "engine.capture",
    "_DropoutNd": "engine.capture",
    "torch._C": ("_borrow", "_layout", "engine.replay"),
    "captum._utils": "explainers.base",
}


def _private_parts(path):
    """Names with an underscore that belong to torch, captum or their objects."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {"self", "cls"}
    defined = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and _is(n.value, own)}
    defined |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr[0] == "_" and node.attr[:2] != "__":
            if node.attr not in defined and not _is(node.value, own):
                text = ast.unparse(node)
                yield "torch._C" if text.startswith("torch._C") else node.attr
        elif isinstance(node, ast.ImportFrom) and "._" in node.module:
            top = node.module.partition(".")[0]
            if top in ("torch", "captum"):
                yield node.module if top == "torch" else "captum._utils"


def _is(node, names):
    return isinstance(node, ast.Name) and node.id in names


def test_private_parts_are_used_where_the_list_says():
    used = {}
    for module, path in _modules(FOLDER).items():
        for name in _private_parts(path):
            used.setdefault(name, set()).add(module)
    used = {name: modules for name, modules in used.items() if name not in OURS}
    allowed = {name: PRIVATE.get(name, ()) for name in used}
    assert {n: {m} if isinstance(m, str) else set(m) for n, m in allowed.items()} == used
    assert set(PRIVATE) - set(used) <= {"torch._dynamo"}  # named in a string


OURS = {"_make", "_getframe"}  # of named tuples, and of Python


def test_private_parts_have_upper_bounds():
    bounds = {}
    for line in importlib.metadata.requires("captum-clustered"):
        requirement = Requirement(line)
        if requirement.marker is None:
            bounds[requirement.name] = {spec.operator for spec in requirement.specifier}
    assert "<" in bounds["torch"]
    assert "<" in bounds["captum"]


# Metadata


def test_version_is_the_distributions():
    assert captum_clustered.__version__ == importlib.metadata.version("captum-clustered")


def test_types_are_published():
    assert (FOLDER / "py.typed").is_file()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="finds too few distributions")
def test_what_is_imported_is_declared():
    """Each library that the package imports is among its dependencies or its users' extras."""
    declared = set()
    for line in importlib.metadata.requires("captum-clustered"):
        requirement = Requirement(line)
        extras = ["", "demo", "dicom", "html", "metrics", "nifti", "safetensors", "scale", "timm"]
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras
        ):
            declared.add(canonicalize_name(requirement.name))
    distributions = importlib.metadata.packages_distributions()
    imported = set()
    for path in _modules(FOLDER).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    imported -= sys.stdlib_module_names | {NAME}
    assert "torch" in imported
    owners = {name: {canonicalize_name(d) for d in distributions[name]} for name in imported}
    assert {name for name, owner in owners.items() if not owner & declared} == set()


# Docstrings


def _undocumented(owner, name):
    """Names of a public object, and of its own public methods, that no docstring explains."""
    thing = getattr(owner, name)
    alias = isinstance(thing, types.GenericAlias)  # which Python 3.10 takes for a class
    if alias or not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return
    text = inspect.getdoc(thing) or ""
    if not text or text.startswith(f"{name}("):  # a dataclass makes up such a line itself
        yield name
    if inspect.isclass(thing):
        kinds = (property, classmethod, staticmethod, types.FunctionType)
        for attribute, value in vars(thing).items():
            public = not attribute.startswith("_") and isinstance(value, kinds)
            if public and not inspect.getdoc(getattr(thing, attribute)):
                yield f"{name}.{attribute}"


@pytest.mark.parametrize("module", [m for m in _modules(FOLDER) if m != "__main__"])
def test_public_names_exist_and_have_docstrings(module):
    loaded = importlib.import_module(f"{NAME}.{module}".rstrip("."))
    assert loaded.__doc__
    if module.startswith("_"):
        return
    assert len(loaded.__all__) == len(set(loaded.__all__))
    missing = [found for name in loaded.__all__ for found in _undocumented(loaded, name)]
    assert missing == []


def test_the_docstring_test_can_fail():
    class Owner:
        class Bare:
            def method(self):
                pass

    assert list(_undocumented(Owner, "Bare")) == ["Bare", "Bare.method"]
