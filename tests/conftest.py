"""The command line as a person uses it."""

import sys

import pytest

from diffusers_kts import cli


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
