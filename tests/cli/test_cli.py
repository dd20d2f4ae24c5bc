"""The help, and errors of the command line."""

import subprocess
import sys

import pytest


def test_help_is_in_groups_and_says_the_workflow(kts, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = kts("-h")
    assert code == 0 and "kts doctor says what fits" in out and " card " not in out and kts()[:2] == (0, out)
    code, out, _ = kts("generate", "-h")
    groups = ["Model", "Prompts", "Sampling", "Shaping (KTS)", "Selection", "Output", "Distributed runs"]
    places = [out.index(f"─ {group} ─") for group in groups]
    assert code == 0 and places == sorted(places)
    assert "At least 1. Default: 8." in out and "Choose from imagefolder, webdataset, parquet." in out


@pytest.mark.parametrize(
    "command",
    ["audit", "convert-sit", "demo", "doctor", "evaluate", "generate", "publish", "space", "theory", "tune", "verify"],
)
def test_every_help_has_groups_and_no_maintainers_options(kts, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = kts(command, "-h")
    assert code == 0 and kts(command, "--help")[1] == out and ("─ Output ─" in out or command == "doctor")
    assert "--results" not in out and "[default" not in out and "Default: None" not in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["generate", "--steps", 2], "there is no option --steps; did you mean --num-inference-steps? see kts generate -h."),
        (["audit", "--reference-images", "a"], "there is no option --reference-images; did you mean --reference?"),
        (["publish", "model", "--poster"], "there is no option --poster"),
        (["verify"], "missing argument '"),
        (["demo", "--seed", "one"], "invalid value for '--seed'"),
        (["card"], "no such command 'card'; see kts -h."),
        (["space", "--port", 70000], "port is 70000; give at most 65535."),
    ],
)
def test_a_misused_command_ends_in_one_sentence(kts, args, words):
    code, out, err = kts(*args)
    assert code == 2 and not out and err.startswith("kts: ") and words in err and err.count("\n") == 1


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
