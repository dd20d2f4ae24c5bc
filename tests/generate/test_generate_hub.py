"""``--push-to-hub`` against a small server that answers as the Hub's HTTP API does; no network."""

import datasets
import huggingface_hub
import pytest
from hub_stand_in import hub  # noqa: F401 (fixture)

JOB = [
    "--class-labels",
    "Bag,Coat,Shirt",
    "--images-per-prompt",
    3,
    "--keep-top",
    1,
    "--num-inference-steps",
    3,
    "--output",
    "out",
]


def test_a_finished_data_set_goes_to_the_hub_with_its_card(kts, tmp_path, hub):
    code, out, err = kts("generate", *JOB, "--push-to-hub", "a/b")
    assert code == 0 and "/datasets/a/b" in out.splitlines()[-1], err
    (created,) = hub.created
    assert (created["name"], created["organization"], created["type"], created["visibility"]) == (
        "b",
        "a",
        "dataset",
        "private",
    )
    local = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert hub.files == {name: data for name, data in local.items() if not name.startswith(".kts/")}
    card = huggingface_hub.DatasetCard(hub.files["README.md"].decode())
    assert card.data.configs[0]["data_files"] == ["metadata.jsonl", "images/**"] and card.data.size_categories == ["n<1K"]
    assert "3 samples of `generalizing`, drawn with 27 network calls" in card.text and "| keep_top | `1` |" in card.text

    # what others get from the Hub: the folder as it was uploaded, read by its card
    for name, data in hub.files.items():
        (tmp_path / "down" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "down" / name).write_bytes(data)
    loaded = datasets.load_dataset(str(tmp_path / "down"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["class_name"][:] == ["Bag", "Coat", "Shirt"] and loaded[0]["image"].size == (28, 28)
    assert kts("verify", "out")[0] == 0


def test_a_hub_that_refuses_leaves_the_data_set_and_says_so(kts, tmp_path, hub):
    hub.refuses = ("POST",)
    code, _, err = kts("generate", *JOB, "--push-to-hub", "a/b")
    assert code == 2 and "the data set is complete, but a/b cannot be written" in err and "Traceback" not in err
    assert kts("verify", "out")[0] == 0
    hub.refuses = ()
    assert kts("generate", *JOB, "--push-to-hub", "a/b")[0] == 0 and "metadata.jsonl" in hub.files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"refuses": ("GET",)}, "not yours"),
        ({"user": {"name": "c", "orgs": [{"name": "d"}]}}, "belongs to none of c, d"),
        ({"user": {"name": "a", "auth": {"accessToken": {"role": "read"}}}}, "may only read"),
    ],
)
def test_a_hub_that_cannot_be_written_to_is_known_before_anything_is_drawn(kts, tmp_path, hub, change, words):
    for name, value in change.items():
        setattr(hub, name, value)
    code, _, err = kts("generate", *JOB, "--push-to-hub", "a/b")
    assert code == 2 and "a/b cannot be written" in err and words in err and "Traceback" not in err
    assert not (tmp_path / "out").exists() and not hub.created
