"""The results of an audit in a model card: read by huggingface_hub, written again without a trace of the earlier ones."""

import copy

import pytest
from huggingface_hub import EvalResult, ModelCard

from diffusers_kts.audit.card import BEGIN, END, read_card, write_card

COUNTED = {"count": 60, "n": 100, "low": 0.497, "high": 0.697}
FOUND = {
    "copies": {
        "pixels": {
            "authpct": {"samples": COUNTED, "real": None},
            "calibrated_l2": {"samples": COUNTED | {"count": 0}, "real": COUNTED},
        }
    },
    "heading": "plain Euler",
    "f_mem": {"count": 0, "n": 100, "low": 0.0, "high": 0.036, "fraction": 0.0},
    "frechet_distance": 9.5,
}
REPORT = {
    "model": "runs/koala", "task": "text-to-image", "device": "cpu", "frechet_space": "pixels", "neighbor_space": "pixels",
    "audit": {
        "settings": {"num_samples": 100, "num_inference_steps": 50, "seed": 3, "threshold": 1 / 3},
        "sha256": {"model": "a" * 64, "training_images": "b" * 64},
        "versions": {"torch": "2.13.0"},
    },
    "verdict": ["Plain sampling repeats the training set in 0 of its 100 samples: at most 3.6 % (95 %)."],
    "training_images": {"count": 12, "distinct": 11}, "samplers": {"euler": FOUND},
}  # fmt: skip
OTHER = EvalResult("text-to-image", "coco", "COCO", "fid", 12.5)


def test_a_card_keeps_what_is_not_ours_and_is_written_twice_as_once(tmp_path):
    path = tmp_path / "README.md"
    card = ModelCard("---\nlicense: mit\n---\n# Koala\n\nBefore.\n")
    card.data.model_name, card.data.eval_results = "Koala", [OTHER]
    card.save(path)
    write_card(path, REPORT)
    path.write_text(path.read_text() + "\nAfter.\n")
    changed = copy.deepcopy(REPORT)
    changed["samplers"]["euler"]["f_mem"]["fraction"] = 0.25
    write_card(path, changed)
    once = path.read_bytes()
    write_card(path, changed)
    assert path.read_bytes() == once
    read = ModelCard.load(path)
    assert read.data.license == "mit" and read.data.model_name == "Koala"
    values = {(result.dataset_type, result.metric_type): result.metric_value for result in read.data.eval_results}
    assert values == {("coco", "fid"): 12.5, ("training-images", "f_mem"): 0.25, ("training-images", "frechet_distance"): 9.5}
    assert read.text.count(BEGIN) == 1 and read.text.index("Before.") < read.text.index(BEGIN)
    assert read.text.index(END) < read.text.index("After.")
    assert (
        "AuthPct, in pixels: 60.0 % (95 %: 49.7 to 69.7). Calibrated L2 below 1, in pixels: at most 70 % (95 %)" in read.text
    )
    for named in ("at most 3.6 % (95 %)", "a" * 64, "b" * 64, "seed 3", "torch 2.13.0", "on cpu", "50 steps"):
        assert named in read.text


def test_a_new_card_is_named_after_the_model(tmp_path):
    write_card(tmp_path / "README.md", REPORT)
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.model_name == "koala" and read.text.startswith(BEGIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"# Koala\n{BEGIN}\n", "holds <!-- written by kts audit --> without"),
        (f"{END} {BEGIN}", "without"),
        ("---\nlicense: [\n---\n", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("---\nmodel-index: 7\n---\n", "cannot be read"),
    ],
)
def test_a_damaged_card_is_refused_before_any_work_and_stays(kts, tmp_path, text, words):
    path = tmp_path / "README.md"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    code, _, err = kts("audit", "--num-samples", 8, "--num-inference-steps", 2, "--card", "README.md")
    assert code == 2 and words in err and "Traceback" not in err and path.read_bytes() == before
    assert not (tmp_path / "kts-audit").exists()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_card(tmp_path / "nowhere" / "README.md")
