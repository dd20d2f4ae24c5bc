"""The help, and errors of the command line."""

import subprocess
import sys

import pytest


def test_help_is_in_groups_and_says_the_workflow(kts, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = kts("-h")
    assert code == 0 and "kts doctor says what fits" in out and " card " not in out
    code, out, _ = kts("generate", "-h")
    groups = ["Model", "Prompts", "Sampling", "Shaping (KTS)", "Selection", "Output", "Distributed runs"]
    places = [out.index(f"─ {group} ─") for group in groups]
    assert code == 0 and places == sorted(places)
    assert "At least 1. Default: 8." in out and "Choose from imagefolder, webdataset, parquet." in out


@pytest.mark.parametrize("command", ["demo", "audit", "generate", "tune", "doctor"])
def test_one_spelling_in_all_commands(kts, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    out = kts(command, "--help")[1]
    assert "--num-inference-steps" in out and " --steps" not in out and "--reference-images" not in out


@pytest.mark.parametrize(("package", "command", "extra"), [("optuna", "tune", "tune"), ("gradio", "space", "space")])
def test_a_missing_package_names_the_extra_of_the_command(package, command, extra):
    code = f"import sys; sys.modules[{package!r}] = None; from diffusers_kts.cli import main; sys.argv[1:] = [{command!r}]"
    done = subprocess.run([sys.executable, "-c", f"{code}; main()"], capture_output=True, text=True)
    assert done.returncode == 2 and f'"diffusers-kts[{extra}]"' in done.stderr and "Traceback" not in done.stderr


def test_doctor_refuses_no_steps(kts):
    code, _, err = kts("doctor", "--model", "memorizing", "--num-inference-steps", 0)
    assert code == 2 and "num_inference_steps is 0; give at least 1" in err
