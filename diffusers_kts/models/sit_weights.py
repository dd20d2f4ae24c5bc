"""Published weights of SiT: read without running code, checked by their shapes, and laid out for `SiTTransformer2DModel`."""

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import brief
from .transformer_sit import TIME_FREQUENCIES

SIZES = {(12, 384): ("S", 6), (12, 768): ("B", 12), (24, 1024): ("L", 16), (28, 1152): ("XL", 16)}  # (blocks, width): heads
PATCHES = (2, 4, 8)
PROJECTORS = "projectors."  # only in REPA's training
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of distributed training and torch.compile
SHOWN = 4  # wrong names in an error
REMEDY = "give the .pt of SiT or REPA (a training checkpoint with 'ema', or bare weights), or those weights as .safetensors"
NAMES = {  # published: ours
    "x_embedder.proj": "patch_embed.proj",
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
    "attn.proj": "attn.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
OTHERS = {  # names of weights that only other networks have: what these are
    r"^s_embedder\.|^t_embedder\.W$": "a DiT of RAE",
    r"\.mlp\.w12\.": "a LightningDiT",
    r"^decoder_blocks\.": "in REPA's old layout, which load_legacy_checkpoints in REPA's utils.py renames",
    r"\.attn\.q_norm\.": "a SiT with qk-norm",
}
ESSENTIAL = {  # weights whose shapes say which SiT it is, with their dimensions
    "x_embedder.proj.weight": 4,
    "pos_embed": 3,
    "y_embedder.embedding_table.weight": 2,
    "final_layer.linear.weight": 2,
}
State = Mapping[str, torch.Tensor]


def read_weights(path: Path) -> tuple[State, Mapping[str, Any]]:
    """Tensors by name, those of the moving average where the file has it, and the settings of the training, if it has them.

    Raises:
        ValueError: unreadable, or something else is in it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; {REMEDY}.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not readable safetensors ({brief(error)}); download it again.") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # SiT's checkpoints hold their command line
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = f"it is damaged, or holds more than tensors ({brief(error)})"
        raise ValueError(f"{path} is not loaded: {reason}; {REMEDY}.") from error
    except Exception as error:  # a damaged archive raises anything from EOFError to RuntimeError
        raise ValueError(f"{path} cannot be read ({brief(error)}); download it again.") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, no weights by name; {REMEDY}.")
    state = next((found[key] for key in ("ema", "ema_model", "model") if isinstance(found.get(key), Mapping)), found)
    training = found.get("args")
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ValueError(f"{path} holds {_some(list(found))}, no weights by name; {REMEDY}.")
    state = {WRAPPERS.sub("", name): value for name, value in state.items()}
    training = vars(training) if isinstance(training, argparse.Namespace) else training
    return state, training if isinstance(training, Mapping) else {}


def has_projectors(state: State) -> bool:
    """Whether the weights come with REPA's projectors."""
    return any(name.startswith(PROJECTORS) for name in state)


def size_name(config: Mapping[str, Any]) -> str:
    """The published name of a configuration, such as SiT-XL/2."""
    size, _ = SIZES[config["num_layers"], config["num_attention_heads"] * config["attention_head_dim"]]
    return f"SiT-{size}/{config['patch_size']}"


def sit_config(state: State) -> dict[str, Any]:
    """Configuration of the `SiTTransformer2DModel` that published weights belong to, by their shapes.

    Raises:
        ValueError: they are of no published size, or a weight is missing, has another shape, or is none of SiT's.
    """
    for pattern, what in OTHERS.items():
        if any(re.search(pattern, name) for name in state):
            raise ValueError(f"these weights are {what}; {REMEDY}.")
    for name, rank in ESSENTIAL.items():
        if name not in state or state[name].ndim != rank:
            raise ValueError(f"these are no weights of SiT, which have {name} with {rank} dimensions; {REMEDY}.")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    rows = state["y_embedder.embedding_table.weight"].shape[0]
    blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if (blocks, width) not in SIZES or patch not in PATCHES:
        known = ", ".join(f"{n} of {w} ({name})" for (n, w), (name, _) in SIZES.items())
        raise ValueError(
            f"{blocks} blocks of width {width} with patches of {patch} are no published SiT; there are {known}, patches of "
            "2, 4 or 8."
        )
    side = math.isqrt(state["pos_embed"].shape[1])
    outputs = state["final_layer.linear.weight"].shape[0] // patch**2
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"the last layer gives {outputs} channels of {channels}; SiT's gives as many, or twice as many.")
    expected = _shapes(blocks, width, patch, channels, outputs, side**2, rows)
    given = {name for name in state if not name.startswith(PROJECTORS)}
    for words, names in (
        ("miss", [name for name in expected if name not in given]),
        ("also have", sorted(given - set(expected))),
        ("have in another shape", [name for name in expected if name in given and state[name].shape != expected[name]]),
    ):
        if names:
            raise ValueError(f"the weights {words} {_some(names)}; {REMEDY}.")
    heads = SIZES[blocks, width][1]
    return {
        "sample_size": side * patch,
        "patch_size": patch,
        "in_channels": channels,
        "num_layers": blocks,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "num_embeds_ada_norm": rows - 1,
    }


def _shapes(
    blocks: int, width: int, patch: int, channels: int, outputs: int, tokens: int, rows: int
) -> dict[str, tuple[int, ...]]:
    """Shape of every published weight by name."""
    layers: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": (width, channels, patch, patch),
        "t_embedder.mlp.0": (width, TIME_FREQUENCIES),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (patch**2 * outputs, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for i in range(blocks):
        layers |= {
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (4 * width, width),
            f"blocks.{i}.mlp.fc2": (width, 4 * width),
            f"blocks.{i}.adaLN_modulation.1": (6 * width, width),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, tokens, width),
        "y_embedder.embedding_table.weight": (rows, width),
    }
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def check_values(state: State) -> None:
    """Raises ValueError for weights that are quantised, or not finite."""
    for name, value in state.items():
        if not value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype}; give weights in floating point.")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds values that are not finite; download the file again.")


def to_diffusers(state: State, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Published weights under the names, and in the layout, of `SiTTransformer2DModel`; without REPA's projectors and without
    the half of the last layer that SiT does not use."""
    ours: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if name.startswith(PROJECTORS):
            continue
        block, inner = "", layer
        if layer.startswith("blocks."):
            _, number, inner = layer.split(".", 2)
            block = f"transformer_blocks.{number}."
        if name == "pos_embed":
            ours[name] = value
        elif inner == "attn.qkv":
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                ours[f"{block}attn.to_{part}.{kind}"] = rows.clone()
        elif inner == "final_layer.linear":
            ours[f"proj_out.{kind}"] = _by_channel(value, config)[:, : config["in_channels"]].flatten(0, 1)
        elif inner == "final_layer.adaLN_modulation.1":
            shift, scale = value.chunk(2)
            ours[f"norm_out.linear.{kind}"] = torch.cat([scale, shift])
        else:
            ours[f"{block}{NAMES[inner]}.{kind}"] = value
    return ours


def has_unused_half(state: State, config: Mapping[str, Any]) -> bool:
    """Whether the last layer has the rows for a variance that SiT has next to the velocity, and never trains.

    Raises:
        ValueError: they are trained, as in a DiT.
    """
    unused = [
        _by_channel(state[f"final_layer.linear.{kind}"], config)[:, config["in_channels"] :] for kind in ("weight", "bias")
    ]
    if any(bool(rows.any()) for rows in unused):
        raise ValueError(f"these are weights of a DiT, a diffusion model with a trained variance, and no flow; {REMEDY}.")
    return unused[0].numel() > 0


def _by_channel(rows: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    return rows.unflatten(0, (config["patch_size"] ** 2, -1))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(map(str, names[:SHOWN])) or "nothing") + more
