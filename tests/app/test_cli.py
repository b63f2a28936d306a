"""The commands themselves: help, version, defaults."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import captum_clustered
from captum_clustered import ClusteredLayerAblation
from captum_clustered.app import cli
from captum_clustered.clustering import CLUSTERERS, KMeans
from captum_clustered.evaluation.plan import Settings
from captum_clustered.methods import METHODS
from captum_clustered.models import WEIGHTS, load
from captum_clustered.weighting import WEIGHTINGS
from command_line import run


def test_help_names_every_choice():
    text = re.sub(r"-\n\s+", "-", run("explain", "--help").stdout)
    words = re.sub(r"[,.;]", " ", text).split()
    for choices in (CLUSTERERS, WEIGHTINGS, WEIGHTS, METHODS):
        assert set(choices) <= set(words)


def test_explain_and_evaluate_take_the_same_options_with_the_same_defaults():
    ours, theirs = (inspect.signature(f).parameters for f in (cli.explain, cli.evaluate))
    own = {"images", "dicom", "dicom_identifiers", "bare", "colormap", "alpha", "resume"}
    more = {"data", "metric", "controls", "calibrate", "fill", "limit", "batch_size", "step"}
    more |= {"retry_failed", "workers"}
    assert set(ours) - set(theirs) == own
    assert set(theirs) - set(ours) == more
    for name in set(ours) & set(theirs):
        assert ours[name].default == theirs[name].default, name
        assert ours[name].annotation == theirs[name].annotation, name


def test_defaults_are_those_of_the_settings_and_of_the_class():
    parameters = inspect.signature(cli.evaluate).parameters
    settings = Settings(data=Path(), model="")
    plural = {"method": "methods", "metric": "metrics", "weighting": "weightings"}
    plural |= {"target": "targets", "layer": "layers"}
    for name in set(parameters) - {"data", "model", "debug"}:
        value = getattr(settings, plural.get(name, name))
        default = parameters[name].default
        assert (list(value) if isinstance(value, tuple) else value) == default, name
    assert settings.weights == inspect.signature(load).parameters["weights"].default
    assert settings.seed == KMeans().seed
    assert METHODS["clustered-cam"].factory is ClusteredLayerAblation  # whose defaults are kept


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"captum-clustered {captum_clustered.__version__}\n"


def test_package_can_be_run():
    result = subprocess.run(
        [sys.executable, "-m", "captum_clustered", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("Usage: captum-clustered [OPTIONS] COMMAND")
    assert "explain" in result.stdout
    assert "demo" in result.stdout


def test_help_loads_nothing_heavy():
    code = (
        "import sys, captum_clustered\nbefore = set(sys.modules)\nimport captum_clustered.app.cli\n"
        "from typer.testing import CliRunner\nfrom captum_clustered.app.cli import app\n"
        "CliRunner().invoke(app, ['explain', '--help'], catch_exceptions=False)\n"
        "print({name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "typer" in result.stdout
    for heavy in ("PIL", "matplotlib", "scipy", "sklearn", "timm", "torchvision"):
        assert f"'{heavy}'" not in result.stdout
