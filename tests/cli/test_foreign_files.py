"""Every file that a command reads, cut, retyped, nested or recoded: it is read, or one sentence names it; no traceback."""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sit_reference import ReferenceSiT

from diffusers_kts import PRESETS, ClassConditionalFlowPipeline, cli

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
DRAW = "generate --model model --num-prompts 5 --num-inference-steps 1 --batch-size 2 --output"
PLAN = "generate --model model --num-inference-steps 1 --dry-run"
JUDGE = "evaluate set --metrics fd --image-size 4 --output scores --overwrite --reference"
JUDGED = "evaluate {} --metrics fd --image-size 4 --output scores --overwrite --reference set"
CONVERT = "convert-sit {} --no-vae --labels labels.txt"
AUDIT = "audit --model model --num-samples 8 --num-inference-steps 2 --features pixels --output audited"
TUNE = "tune --model model --num-samples 32 --fresh-samples 20 --num-inference-steps 2 --trials 1 --output tuned"
CASES = {  # file: commands that read it
    "drawn/.kts/manifest.json": ["verify drawn", f"{DRAW} drawn", "publish dataset --source drawn --dry-run"],
    "drawn/.kts/blocks/00000000.json": ["verify drawn", f"{DRAW} drawn"],
    "drawn/.kts/assembled.json": ["verify drawn", f"{DRAW} drawn"],
    "drawn/metadata.jsonl": ["verify drawn", f"{DRAW} drawn"],
    "drawn/config.yaml": [f"{PLAN} --config drawn/config.yaml"],
    "set/metadata.jsonl": [JUDGED.format("set"), f"{JUDGE} set"],
    "set/images/00000/00000001.png": [JUDGED.format("set"), f"{JUDGE} set"],
    "webdataset/shards/000000.tar": [JUDGED.format("webdataset")],
    "parquet/data/000000.parquet": [JUDGED.format("parquet")],
    "a.npy": [JUDGED.format("a.npy"), f"{JUDGE} a.npy"],
    "model/training_images.npz": [f"{JUDGE} set --training-images model/training_images.npz"],
    "statistics.npz": [f"{JUDGE} statistics.npz"],
    "p.txt": [f"{PLAN} --prompts p.txt"],
    "p.jsonl": [f"{PLAN} --prompts p.jsonl"],
    "p.csv": [f"{PLAN} --prompts p.csv"],
    "p.parquet": [f"{PLAN} --prompts p.parquet"],
    "preset.json": [f"{PLAN} --preset preset.json", "doctor --model model --no-trial --preset preset.json"],
    "arguments.yaml": [f"{PLAN} --pipeline-args arguments.yaml"],
    "model/model_index.json": ["doctor --model model", PLAN, "publish model --source model --dry-run"],
    "model/scheduler/scheduler_config.json": ["doctor --model model", PLAN, "publish model --source model --dry-run"],
    "model/transformer/config.json": ["doctor --model model", PLAN],
    "model/transformer/diffusion_pytorch_model.safetensors": ["doctor --model model", PLAN],
    "weights.pt": [CONVERT.format("weights.pt")],
    "weights.safetensors": [CONVERT.format("weights.safetensors")],
    "labels.txt": [CONVERT.format("weights.pt")],
    "results/embedded_models.json": ["publish scheduler --dry-run --results results"],
    "audited/audit.json": [AUDIT],
    "audited/blocks/000000/euler.kpe.safetensors": [AUDIT],
    "tuned/study.db": [TUNE],
}
SLOW = {"audited/blocks/000000/euler.kpe.safetensors": 1, "tuned/study.db": 4, "results/embedded_models.json": 5}


def run(command):
    out, sys.argv = io.StringIO(), ["kts", *command.split()]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli.main()
        return 0, out.getvalue()
    except SystemExit as stop:
        return stop.code or 0, out.getvalue()


def save_model(folder):
    network = DiTTransformer2DModel(
        sample_size=4, in_channels=1, out_channels=1, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip
    ClassConditionalFlowPipeline(network, FlowMatchEulerDiscreteScheduler()).save_pretrained(folder)
    np.savez(folder / "training_images.npz", images=np.random.default_rng(0).integers(0, 256, (9, 4, 4), np.uint8))
    (folder / "README.md").write_text("# A model\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with all of them, each good."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(folder):
        save_model(Path("model"))
        for name in ("drawn", "webdataset", "parquet"):
            kind = "imagefolder" if name == "drawn" else name
            assert run(f"{DRAW} {name} --format {kind}")[0] == 0
        shutil.copytree("drawn", "set", ignore=shutil.ignore_patterns(".kts"))
        np.save("a.npy", np.zeros((4, 8, 8), np.uint8))
        np.savez("statistics.npz", features_mu=np.zeros(16), features_sigma=np.eye(16))
        Path("p.txt").write_text("0\n1\n")
        Path("p.jsonl").write_text('{"prompt": 1, "style": "ink"}\n{"prompt": 2, "style": "oil"}\n')
        Path("p.csv").write_text("prompt,style\n1,ink\n2,oil\n")
        pq.write_table(pa.table({"prompt": [1, 2], "style": ["ink", "oil"]}), "p.parquet")
        PRESETS["quality"].save("preset.json")
        Path("arguments.yaml").write_text("guidance_start: 0.3\nsigmas: [1.0, 0.5]\n")
        Path("labels.txt").write_text("cat\ndog\n")  # not as many as there are classes: good weights are refused in the end
        with torch.device("meta"):
            shapes = ReferenceSiT(12, 384, 6, 8).state_dict()
        torch.save({"ema": {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}}, "weights.pt")
        save_file({"pos_embed": torch.zeros(1, 16, 384), "x_embedder.proj.bias": torch.zeros(384)}, "weights.safetensors")
        Path("results").mkdir()
        shutil.copyfile(RESULTS / "embedded_models.json", "results/embedded_models.json")
        assert run(AUDIT)[0] == 0 and run(TUNE)[0] == 0
    return folder


VALUES = (None, True, -1, 1e400, "x", "", [], {}, [[[]]], {"a": {"a": 1}})


def changed(value, draw):
    """JSON with one value of another kind in it."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        copy = value.copy()
        copy[key] = changed(value[key], draw)
        return copy
    return draw(st.sampled_from(VALUES))


@st.composite
def spoiled(draw, data, name):
    kinds = ["cut", "flip", "swap", "deep", "utf-16", "constant"] + ["retyped"] * 4 * name.endswith(".json")
    kind = draw(st.sampled_from(kinds))
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    if kind == "retyped":
        return json.dumps(changed(json.loads(data), draw)).encode()
    if kind == "cut":
        return data[:place]
    if kind == "flip":
        return data[:place] + draw(st.binary(min_size=1, max_size=4)) + data[place + 1 :]
    if kind == "swap":
        old, new = draw(st.permutations([b'"', b"1", b"0", b"{", b"[", b":", b"null", b"s"]))[:2]
        return data.replace(old, new, draw(st.integers(1, 3)))
    if kind == "deep":
        return data[:place] + b"[" * 100_000 + data[place:]
    if kind == "utf-16":
        return data.decode("latin-1").encode("utf-16")
    return draw(st.sampled_from([b"", b"null", b"[]", b"{}", b"3", b'"a"', b"\x00" * 64, b"\xef\xbb\xbf" + data]))


@pytest.mark.parametrize("name", CASES)
def test_a_foreign_file_ends_in_a_sentence(whole, tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [])
    top, copy = Path(name).parts[0], tmp_path / "copy"
    shutil.copytree(whole, copy)
    monkeypatch.chdir(copy)
    written = any(command.startswith((DRAW, AUDIT, TUNE)) for command in CASES[name])

    @settings(
        max_examples=SLOW.get(name, 10),
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(st.data())
    def check(data):
        if written:
            shutil.rmtree(top)
            shutil.copytree(whole / top, top)
        Path(name).write_bytes(data.draw(spoiled((whole / name).read_bytes(), name)))
        pictures = {file: file.read_bytes() for file in copy.rglob("*.png")}
        for command in CASES[name]:
            code, said = run(command)  # an exception of any other kind fails the test
            assert code in (0, 2, 3) and "Traceback" not in said, said
            if code == 2:
                *_, last = said.strip().splitlines()
                assert last.startswith("kts: ") and any(
                    part in last
                    for part in (*Path(name).parts, "labels.txt", "pipeline_args", "with these settings", "another ending")
                ), said
        assert all(file.read_bytes() == content for file, content in pictures.items())

    check()
