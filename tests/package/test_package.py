"""The surface of the package: names, laziness, and the documents that ship with it."""

import doctest
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

import diffusers_kts


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, diffusers_kts; print(sorted({'torch', 'diffusers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_lowest_versions_are_those_of_the_project():
    root = Path(__file__).parents[2]
    pinned = dict(line.split("==") for line in (root / "constraints-lowest.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["demo"], *extras["generate"], *extras["tune"]]
    bounds = dict(found.groups() for line in wanted if (found := re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", line)))
    assert len(bounds) >= 18
    assert {name: Version(pinned[name]) for name in bounds} == {name: Version(version) for name, version in bounds.items()}


def test_every_public_name_exists_and_is_documented():
    for name in diffusers_kts.__all__:
        value = getattr(diffusers_kts, name)
        assert name in dir(diffusers_kts)
        assert not callable(value) or value.__doc__, name
    with pytest.raises(AttributeError, match="KTSScheduler"):
        _ = diffusers_kts.KTSScheduler


EXAMPLES = (
    "ClassConditionalFlowPipeline", "Gain", "KPECallback", "KPEMonitorPipeline", "KPETrace", "KTSDDIMScheduler",
    "KTSFlowMatchHeunScheduler", "KTSFlowMatchScheduler", "Shaping", "diagnose", "embedded_model", "load_preset",
)  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_give_what_they_say(name):
    value = getattr(diffusers_kts, name)
    module = importlib.import_module(diffusers_kts._EXPORTS[name], "diffusers_kts")
    (example,) = doctest.DocTestFinder(recurse=False).find(value, name, module=False, globs=vars(module) | {name: value})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
