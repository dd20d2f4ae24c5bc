"""The command line as a person uses it, the devices there are, and the option that widens the pipeline matrix from a slice
to every class."""

import sys

import pytest
import torch

from diffusers_kts import cli

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_addoption(parser):
    parser.addoption(
        "--all-pipelines",
        action="store_true",
        help="run the pipeline matrix on every flow pipeline, not on a slice",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "beyond_slice: a pipeline that only --all-pipelines runs")


def pytest_collection_modifyitems(config, items):
    beyond = [item for item in items if item.get_closest_marker("beyond_slice")]
    if beyond and not config.getoption("--all-pipelines"):
        config.hook.pytest_deselected(items=beyond)  # counted in the summary line
        items[:] = [item for item in items if item not in set(beyond)]
        config.stash[_LEFT_OUT] = len({item.callspec.params["name"] for item in beyond})


def pytest_terminal_summary(terminalreporter, config):
    if left_out := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} pipeline classes of the matrix were left out; --all-pipelines runs them.")
    terminalreporter.write_line(f"Tests of steps and energies ran on {' and '.join(DEVICES)}.")


_LEFT_OUT = pytest.StashKey[int]()


@pytest.fixture(params=DEVICES)
def device(request):
    """Every device there is, in turn."""
    return request.param


@pytest.fixture
def kts(monkeypatch, capsys, tmp_path):
    """Run ``kts ...`` in an empty folder; returns exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["kts", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return (code, *capsys.readouterr())

    return run
