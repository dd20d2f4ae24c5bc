"""A pipeline folder whose weights are not complete is refused by the names of the tensors, before any work."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import TINY

from diffusers_kts.pipelines.complete_weights import check_weights
from diffusers_kts.pipelines.loading import load_pipeline


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}])
def test_what_diffusers_saved_is_complete(tmp_path, name, options):
    TINY[name]().save_pretrained(tmp_path, max_shard_size="50KB", **options)
    check_weights(tmp_path, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    TINY["sd3"]().save_pretrained(folder)
    return folder


CHANGES = {
    "missing": (lambda weights, names: [names[3]], None),
    "half": (lambda weights, names: names[::2], None),
    "all": (lambda weights, names: names, None),
    "unexpected": (lambda weights, names: [], "extra.weight"),
}


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "text_encoder_3"])
@pytest.mark.parametrize("change", CHANGES)
def test_missing_and_unexpected_tensors_are_named(saved, component, change):
    file = next((saved / component).glob("*.safetensors"))
    whole, weights = file.read_bytes(), load_file(file)
    removed, added = CHANGES[change]
    gone = removed(weights, sorted(name for name in weights if "lm_head" not in name))
    kept = {name: value for name, value in weights.items() if name not in gone}
    try:
        save_file(kept | ({} if added is None else {added: torch.zeros(2)}), file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"{component} has not the tensors of .*{added or sorted(gone)[0]}"):
            load_pipeline(saved)
        load_pipeline(saved, **{component: None})  # which is not read then
    finally:
        file.write_bytes(whole)


def test_a_missing_shard_and_a_cut_file_are_refused(tmp_path):
    TINY["sd3"]().save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted((tmp_path / "transformer").glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(OSError, match="transformer"):
        check_weights(tmp_path)
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="transformer"):
        check_weights(tmp_path)
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"})[:-1])
    with pytest.raises((OSError, ValueError), match="transformer"):
        check_weights(tmp_path)
