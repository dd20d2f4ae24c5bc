"""``tools/cards.py`` and ``kts publish``: cards from measured numbers, folders as they go up, refusals, the upload itself."""

import io
import json
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from hub_stand_in import hub  # noqa: F401 (fixture)
from huggingface_hub import DatasetCard, ModelCard, SpaceCard

from diffusers_kts.models import embedded_model
from diffusers_kts.presets import Preset
from diffusers_kts.publish.cards import KINDS, card
from diffusers_kts.publish.folders import BUILDERS
from diffusers_kts.publish.one_file import one_file
from diffusers_kts.publish.refusals import problems, unsourced_numbers
from diffusers_kts.publish.settings import PublishSettings

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CARDS = ROOT / "model_cards"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dataset"])
def test_cards_are_what_the_results_say(kind):
    assert (CARDS / f"{kind}.md").read_text() == card(kind, RESULTS).text, f"run python tools/cards.py --overwrite {kind}"
    for picture in card(kind, RESULTS).pictures:
        assert (CARDS / picture).stat().st_size < 300_000
    assert not unsourced_numbers((CARDS / f"{kind}.md").read_text(), RESULTS.glob("*.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_cards_parse_and_their_code_runs(kind, monkeypatch, tmp_path):
    text = (CARDS / f"{kind}.md").read_text()
    data = {"dataset": DatasetCard, "space": SpaceCard}.get(kind, ModelCard)(text).data
    assert data.license and "arxiv:2602.07928" in data.tags
    if kind not in ("dataset", "space"):
        assert data.library_name == "diffusers" and data.pipeline_tag and data.metrics and data.get("arxiv") == "2602.07928"
    if kind in ("memorizing", "generalizing"):
        assert data.datasets == ["zalando-datasets/fashion_mnist"] and f"({kind}.png)" in text
    for heading in ("How to use", "Limits", "Provenance", "Intended use"):
        assert f"## {heading}\n" in text
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "trust_remote_code" in block:
            continue  # test_hub_loading.py does what it says, in a clean process
        fewer_steps = block.replace('"Bag"]', '"Bag"], num_inference_steps=2')
        exec(compile(fewer_steps, kind, "exec"), {})


def test_space_files_agree_with_the_package():
    requirements = (ROOT / "examples" / "space" / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["demo"], *extras["space"]} - {"diffusers-kts[demo]"}
    assert set(requirements) == {line for line in wanted if not line.startswith("gradio")}  # which sdk_version brings
    assert (ROOT / "examples" / "space" / "README.md").read_text() == (CARDS / "space.md").read_text()
    assert SpaceCard((CARDS / "space.md").read_text()).data.sdk_version == version("gradio")


@pytest.fixture
def cards(monkeypatch, capsys, tmp_path):
    """Run ``python tools/cards.py ...`` in an empty folder; returns exit code and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["cards.py", *map(str, args)])
        try:
            runpy.run_path(str(ROOT / "tools" / "cards.py"), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return run


def test_a_number_without_a_source_is_refused(cards, tmp_path):
    measured = tmp_path / "results"
    shutil.copytree(RESULTS, measured)
    stored = json.loads((measured / "embedded_models.json").read_text())
    del stored["memorizing"]["presets"]
    (measured / "embedded_models.json").write_text(json.dumps(stored))
    code, err = cards("memorizing", "--results", measured)
    assert code == 2 and "memorizing / presets" in err and not (tmp_path / "model_cards").exists()
    code, err = cards("scheduler", "--results", tmp_path)
    assert code == 2 and "embedded_models.json is missing" in err


def test_a_card_is_replaced_on_request_only(cards, tmp_path):
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards/scheduler.md").write_text("mine")
    code, err = cards("scheduler", "--results", RESULTS)
    assert code == 2 and "scheduler.md exists; add --overwrite" in err
    assert (tmp_path / "model_cards/scheduler.md").read_text() == "mine"
    assert cards("scheduler", "--results", RESULTS, "--overwrite")[0] == 0


def test_figures_are_held_against_their_source(tmp_path):
    source = tmp_path / "a.json"
    source.write_text('{"f": [0.12345, true], "n": {"x": 7.25, "none": null}}')
    good = "F 12.3 % or 12.35 or 0.123, x 7.25 | 7.3 |, 28x28, 60,000, v0.42.1, SD3.5, 2.13.0+cpu, `9.9`, 95 % interval\n"
    assert not unsourced_numbers(good, [source])
    assert unsourced_numbers("---\na: 1.5\n---\none\nF 12.4 % and 7.24\n", [source]) == [("12.4", 5), ("7.24", 5)]


@pytest.fixture(scope="module")
def published_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    BUILDERS["model"](folder, PublishSettings("model", results=RESULTS, dry_run=True))
    return folder


SECRET = "hf_" + "a" * 34


def archive():
    data = io.BytesIO()
    np.savez(data, images=np.array([{}], dtype=object))
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.md", f"token {SECRET}", "notes.md line 1 holds a Hugging Face token"),
        ("run.py", "x = 1\nkey = 'AKIA" + "B" * 16 + "'", "run.py line 2 holds an AWS key"),
        ("config.json", '{"password": "correct-horse"}', "config.json line 1 holds a password"),
        ("log.txt", "saved to /home/someone/out", "/home/someone, a path of one machine"),
        (".env", "A=1", "private by its name"),
        ("weights.bin", "0", "is a pickle"),
        ("weights.safetensors", pickle.dumps({"a": 1}), "weights.safetensors is a pickle"),
        ("a.npz", archive(), "a.npz is a pickle"),
        ("run.ipynb", "{}", "run.ipynb is none of what a published folder is made of"),
        ("run.sh", f"export HF_TOKEN={SECRET}", "run.sh line 1 holds a Hugging Face token"),
        ("LICENSE.xml", SECRET.encode("utf-16"), "LICENSE.xml line 1 holds a Hugging Face token"),
        ("README.md", "# A model\n\nF_mem 31.2 %.\n", "README.md line 3 says 31.2"),
    ],
)
def test_what_must_not_go_up(kts, tmp_path, published_model, name, content, words):
    folder = tmp_path / "good"
    shutil.copytree(published_model, folder)
    if name == "README.md":  # as it is, it goes through, as a folder of the user's own
        assert kts("publish", "model", "--source", folder, "--dry-run")[0] == 0
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = kts("publish", "model", "--source", folder, "--repo", "a/b")
    assert code == 2 and words in err and "Traceback" not in err and SECRET not in err
    assert not (tmp_path / "kts-publish").exists()


def test_limits_and_links(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# Fine\n")
    assert problems(tmp_path) == []
    (tmp_path / "a.json").symlink_to(tmp_path / "b.json")
    assert "is a link" in problems(tmp_path)[0]
    monkeypatch.setattr("diffusers_kts.publish.refusals.MAX_FILE", 3)
    monkeypatch.setattr("diffusers_kts.publish.refusals.MAX_IN_FOLDER", 0)
    monkeypatch.setattr("diffusers_kts.publish.refusals.MAX_FILES", 0)
    assert len(problems(tmp_path)) == 4


def test_space_folder_is_whole(kts, tmp_path, hub):
    args = ["publish", "space", "--source", ROOT / "examples" / "space", "--results", RESULTS]
    code, out, err = kts(*args, "--dry-run")
    assert code == 0 and "nothing was written or uploaded" in out and not list(tmp_path.iterdir()), err
    code, out, err = kts(*args, "--repo", "a/b")
    assert code == 0, err
    folder = tmp_path / "kts-publish"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"app.py", "README.md", "requirements.txt", "diffusers_kts/space/app.py", "diffusers_kts/models/NOTICE"} <= names
    assert all(name in out for name in names) and "__pycache__" not in out
    # its own copy of the package is what app.py imports, as on the Hub
    code = "import sys; sys.path.insert(0, '.'); import diffusers_kts; print(diffusers_kts.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent == folder / "diffusers_kts"


def test_a_data_set_needs_a_finished_job(kts, tmp_path, hub):
    code, _, err = kts("publish", "dataset", "--source", tmp_path, "--dry-run")
    assert code == 2 and "no finished output of kts generate" in err
    assert kts("generate", "--class-labels", "Bag,Coat", "--num-inference-steps", 2, "--output", "out")[0] == 0
    code, out, err = kts("publish", "dataset", "--source", "out", "--dry-run")
    assert code == 0 and ".kts" not in out and not (tmp_path / "kts-publish").exists(), err
    assert kts("publish", "dataset", "--source", "out", "--repo", "a/b")[0] == 0
    assert DatasetCard.load(tmp_path / "kts-publish" / "README.md").data.configs


def test_shaping_by_preset_file_and_by_setting(kts, tmp_path, hub):
    Preset("mine", "here", alpha_0=0.03, beta_0=0.02).save("mine.json")
    for options in (["--preset", "mine.json"], ["--preset", "off", "--alpha-0", 0.03, "--beta-0", 0.02]):
        assert kts("publish", "model", "--repo", "a/b", "--results", RESULTS, "--output", len(options), *options)[0] == 0
        saved = json.loads(hub.files["scheduler/scheduler_config.json"])
        assert (saved["alpha_0"], saved["beta_0"]) == (0.03, 0.02)


def test_upload(kts, tmp_path, hub):
    args = ["publish", "scheduler", "--repo", "a/b", "--results", RESULTS]
    assert kts(*args, "--dry-run")[0] == 0 and not list(tmp_path.iterdir())  # which the run itself may follow
    code, out, err = kts(*args)
    assert code == 0 and "Uploaded to http" in out, err
    sent = {str(p.relative_to(tmp_path / "kts-publish")) for p in (tmp_path / "kts-publish").rglob("*") if p.is_file()}
    assert set(hub.files) == sent and hub.created[0]["visibility"] == "private"
    assert hub.files["scheduler/diffusers_kts.py"] == (tmp_path / "kts-publish/scheduler/diffusers_kts.py").read_bytes()
    hub.refuses = ("POST",)
    code, _, err = kts("publish", "scheduler", "--repo", "a/b", "--results", RESULTS, "--output", "other")
    assert code == 2 and "other is complete, but a/b cannot be written" in err
    hub.refuses = ()
    assert kts("publish", "scheduler", "--repo", "a/b", "--results", RESULTS, "--output", "other")[0] == 0  # the same again
    (tmp_path / "other" / "README.md").write_text("mine")
    code, _, err = kts("publish", "scheduler", "--repo", "a/b", "--results", RESULTS, "--output", "other")
    assert code == 2 and "not an empty folder" in err and (tmp_path / "other" / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["poster", "--dry-run"], "kind is 'poster'; choose model or dataset"),
        (["model", "--source", embedded_model(), "--dry-run", "--output", embedded_model() / "a"], "lies in the source"),
        (["scheduler"], "no --repo"),
        (["scheduler", "--repo", "a/b/c"], "give owner/name"),
        (["scheduler", "--preset", "best", "--dry-run"], "preset is 'best'"),
        (["scheduler", "--source", "x", "--dry-run"], "leave --source out"),
        (["model", "--source", "nowhere", "--dry-run"], "is no pipeline folder"),
        (["space", "--source", "nowhere", "--dry-run"], "does not exist"),
        (["dataset", "--dry-run"], "no default source"),
        (["scheduler", "--output", "full", "--dry-run"], "is not an empty folder"),
    ],
)
def test_bad_input(kts, tmp_path, args, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    code, _, err = kts("publish", *args, "--results", RESULTS)
    assert code == 2 and words in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and (tmp_path / "full" / "mine").read_text() == "keep"


def test_one_file_holds_each_module_once_after_those_it_imports(monkeypatch, tmp_path):
    assert one_file("schedulers.scheduling_kts_flow_match", "A title.").startswith('"""A title.')
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("from ..b import two\nfrom .c import three\none = two + three\n")
    (tmp_path / "b.py").write_text("from .room.c import three\ntwo = three - 1\n")
    (tmp_path / "room" / "c.py").write_text("three = 3\n")
    monkeypatch.setattr("diffusers_kts.publish.one_file.PACKAGE", tmp_path)
    exec(text := one_file("room.a", ""), found := {})
    assert found["one"] == 5 and text.count("three = 3") == 1
    (tmp_path / "a.py").write_text("from .b import other\ndef same():\n    pass\n")
    (tmp_path / "b.py").write_text("def same():\n    pass\n")
    monkeypatch.setattr("diffusers_kts.publish.one_file.PACKAGE", tmp_path)
    with pytest.raises(ValueError, match="a and b both define same"):
        one_file("a", "")
