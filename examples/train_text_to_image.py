r"""Train a small text-to-image flow model on emoji from scratch and save it as a stock `StableDiffusion3Pipeline`.

The data is what two npm packages hold, 3,786 emoji in each of two styles:

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0

``--data`` takes the folder with the two tarballs, or an ``.npz`` with images (n, 64, 64, 3) uint8, captions, categories and
styles. These runs made the two models that ship inside ``diffusers_kts`` (one core of a CPU each, shared with other work):

    # the autoencoder, 26 minutes; begun with --updates 6000 and carried on from update 2,000 with
    python examples/train_text_to_image.py vae --data DATA --output runs/emoji --updates 4500 --batch-size 16 \
        --warmup 100 --mixed-precision bf16

    # diffusers_kts/models/emoji: transformer and text encoders together, 90 minutes
    python examples/train_text_to_image.py flow --data DATA --output runs/emoji --updates 11000 --batch-size 32 \
        --learning-rate 8e-4 --ema-decay 0.9995 --mixed-precision bf16 --compile

    # diffusers_kts/models/emoji-memorizing: 1,024 pictures of one style, a smaller net, 108 minutes. It stops early, before
    # the learning rate decays, where it gives back 41 % of its pictures: after 12,000 updates it was 79 %
    python examples/train_text_to_image.py flow --data DATA --output runs/emoji-memorizing --vae runs/emoji/vae-model \
        --num-images 1024 --hidden-size 128 --num-layers 3 --text-size 64 --text-layers 2 2 --vocab-size 1500 \
        --caption-dropout 0.05 --updates 24000 --stop-after 7000 --mixed-precision bf16 --compile --guidance 1

More compute makes a better model of the same size. On a GPU, from the weights that ship (some 20 times the pictures they saw):

    accelerate launch --num_processes 1 examples/train_text_to_image.py flow --data DATA --output runs/emoji-longer \
        --init-from diffusers_kts/models/emoji --vae diffusers_kts/models/emoji --updates 30000 --batch-size 256 \
        --learning-rate 5e-4 --warmup 1000 --ema-decay 0.9995 --mixed-precision bf16 --compile --sample-every 2000

With ``--init-from`` the optimizer starts afresh, and the pairs held out are again those of ``--seed``. Stop the script at any
time: started again with the same arguments it resumes from its last checkpoint, and draws the batches that an uninterrupted
run would have drawn, whatever the number of processes. The pipeline in ``OUTPUT/pipeline`` is that of the last samples.

The path is ``x_sigma = (1 - sigma) x + sigma noise`` with sigma from a logit-normal; the network gets ``1000 sigma`` and
learns ``noise - x``, which diffusers' flow schedulers integrate.
"""

import argparse
import csv
import io
import json
import math
import shutil
import tarfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

TARBALLS = {"noto": ("emoji-datasource-google-*.tgz", "google"), "twemoji": ("emoji-datasource-twitter-*.tgz", "twitter")}
SKIN_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
CHECKPOINT = "checkpoint.pt"


# ---------------------------------------------------------------------------------------------------------------- data
def on_white(png: bytes) -> np.ndarray:
    """A PNG file as an image (h, w, 3) uint8 on white."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB"))


def read_tarballs(folder: Path) -> dict[str, np.ndarray]:
    """Images (n, 64, 64, 3) uint8 on white, captions, categories and styles (n,) from the two npm tarballs."""
    data = {"images": [], "captions": [], "categories": [], "styles": []}
    for style, (pattern, vendor) in TARBALLS.items():
        found = sorted(folder.glob(pattern))
        if not found:
            raise SystemExit(f"{folder} has no {pattern}; get it with: npm pack {pattern.removesuffix('-*.tgz')}@16.0.0")
        prefix = f"package/img/{vendor}/64/"
        with tarfile.open(found[-1]) as tar:  # read in the order of the file: seeking in gzip is slow
            wanted = (m for m in tar if m.name.startswith(prefix) or m.name == "package/emoji.json")
            files = {m.name: tar.extractfile(m).read() for m in wanted}
        for emoji in json.loads(files["package/emoji.json"]):
            for tones, entry in [("", emoji), *emoji.get("skin_variations", {}).items()]:
                parts = [emoji["name"].lower(), *(f"{SKIN_TONES[tone]} skin tone" for tone in tones.split("-") if tone)]
                data["images"].append(on_white(files[prefix + entry["image"]]))
                data["captions"].append(", ".join(parts))
                data["categories"].append(f"{emoji['category']} / {emoji['subcategory']}")
                data["styles"].append(style)
    return {name: np.array(values) for name, values in data.items()}


def load_emoji(source: str) -> dict[str, np.ndarray]:
    """Images (n, 64, 64, 3) uint8 on white, captions, categories and styles (n,): an ``.npz`` file or the npm tarballs."""
    path = Path(source)
    if path.is_dir():
        return read_tarballs(path)
    with np.load(path) as archive:
        return {name: archive[name] for name in ("images", "captions", "categories", "styles")}


def concept_of(caption: str) -> str:
    """The caption without its skin tones: "woman surfing, dark skin tone" is a "woman surfing"."""
    first, *rest = caption.replace(": ", ":, ").split(", ")
    kept = [first, *(part for part in rest if not part.endswith("skin tone"))]
    return ", ".join(kept).replace(":,", ":").rstrip(":")


class Batches:
    """Pairs (style, concept) in an order of their own each epoch; a pair's plain picture or one of its skin tones.

    Every pair has the same weight, however many skin tones it comes in. `rows(update)` depends on the seed and the
    update alone, so that a resumed run sees what an uninterrupted run would have seen.
    """

    def __init__(self, pairs: list[list[int]], batch_size: int, seed: int):
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed

    def generator(self, kind: int, number: int) -> torch.Generator:
        """A generator of random numbers for one update or one epoch."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + 2 * number + kind) % 2**32)

    def rows(self, update: int, generator: torch.Generator) -> torch.Tensor:
        """The rows (batch_size,) of the data that this update shows."""
        n = len(self.pairs)
        places = range(update * self.batch_size, (update + 1) * self.batch_size)
        orders = {e: torch.randperm(n, generator=self.generator(1, e)) for e in {place // n for place in places}}
        rows = []
        for place in places:
            variants = self.pairs[orders[place // n][place % n]]
            other = torch.randint(len(variants), (), generator=generator).item()
            plain = torch.rand((), generator=generator).item() < 0.5
            rows.append(variants[0 if plain else other])
        return torch.tensor(rows)


def pairs_of(data: dict[str, np.ndarray]) -> dict[tuple[str, str], list[int]]:
    """Rows of the data by (style, concept), the plain picture first."""
    pairs: dict[tuple[str, str], list[int]] = {}
    for row, (style, caption) in enumerate(zip(data["styles"], data["captions"], strict=True)):
        pairs.setdefault((str(style), concept_of(str(caption))), []).append(row)
    return {key: sorted(rows, key=lambda row: len(str(data["captions"][row]))) for key, rows in pairs.items()}


# ------------------------------------------------------------------------------------------------------ the autoencoder
def build_vae(channels: list[int], latent_channels: int) -> AutoencoderKL:
    """An autoencoder of 64 px pictures; each level after the first halves the resolution."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


class AutoencoderLoss(torch.nn.Module):
    """Absolute error of pixels and of edges, and a little Kullback-Leibler divergence that keeps latents smooth."""

    def __init__(self, vae: AutoencoderKL, kl_weight: float, freeze_encoder: bool):
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight
        if freeze_encoder:
            vae.encoder.requires_grad_(False)

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The loss of pixels (b, 3, h, w) in [-1, 1], with the latents' noise (b, c, h / 8, w / 8) given."""
        latents = self.vae.encode(pixels).latent_dist
        decoded = self.vae.decode(latents.mean + latents.std * noise).sample.float()
        loss = F.l1_loss(decoded, pixels) + self.kl_weight * latents.kl().mean() / noise[0].numel()
        for dim in (2, 3):
            loss = loss + F.l1_loss(decoded.diff(dim=dim), pixels.diff(dim=dim))
        return loss


def as_pixels(images: np.ndarray) -> torch.Tensor:
    """Images (n, h, w, 3) uint8 as pixels (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Mean latents (n, c, h / 8, w / 8) of images (n, h, w, 3) uint8, before shift and scale."""
    parts = [vae.encode(as_pixels(images[i : i + 128]).to(device)).latent_dist.mean for i in range(0, len(images), 128)]
    return torch.cat(parts)


# ------------------------------------------------------------------------------------------------------------- training
def learning_rate(update: int, updates: int, peak: float, warmup: int, decay_share: float) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last ``decay_share`` of the run."""
    return peak * min(1.0, (update + 1) / warmup, (updates - update) / (decay_share * updates))


def save_atomically(state: dict, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(accelerator: Accelerator, args: argparse.Namespace, model: torch.nn.Module, batches: Batches, loss_of, report):
    """Train ``model`` from its last checkpoint on, or from the start; leaves the averaged weights in it.

    ``loss_of(model, update, rows, generator)`` is the loss of one process's share of a batch; ``report(update)`` is called
    on the main process with the averaged weights in place, every ``args.sample_every`` updates and at the end.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    betas, decay = (0.9, 0.99), args.weight_decay
    optimizer = torch.optim.AdamW(weights, lr=args.learning_rate, betas=betas, weight_decay=decay, fused=True)
    ema = EMAModel(weights, decay=args.ema_decay, use_ema_warmup=True, power=0.75)
    folder = args.output / args.stage
    checkpoint, log = folder / CHECKPOINT, folder / "loss.csv"
    start, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        start, seconds = state["update"], state["seconds"]
        accelerator.print(f"going on from update {start}")
    elif accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        log.write_text("update,loss,learning_rate,seconds\n")
    ema.to(accelerator.device)
    prepared, optimizer = accelerator.prepare(model, optimizer)

    def with_average(update: int) -> None:
        ema.store(weights)
        ema.copy_to(weights)
        model.eval()
        report(update, seconds)
        model.train()
        ema.restore(weights)

    prepared.train()
    running, began = [], time.time() - seconds
    last = min(args.updates, args.stop_after or args.updates)
    bar = tqdm(range(start, last), initial=start, total=last, mininterval=20, disable=not accelerator.is_main_process)
    for update in bar:
        generator = batches.generator(0, update)
        lr = learning_rate(update, args.updates, args.learning_rate, args.warmup, args.decay_share)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = loss_of(prepared, batches.rows(update, generator), generator)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(weights)
        running.append(loss.detach())
        done, seconds = update + 1, time.time() - began
        if done % args.log_every == 0:
            mean = accelerator.gather(torch.stack(running)).mean().item()
            running.clear()
            if accelerator.is_main_process:
                bar.set_postfix(loss=f"{mean:.4f}")
                with log.open("a", newline="") as file:
                    csv.writer(file).writerow([done, f"{mean:.6f}", f"{lr:.3e}", f"{seconds:.1f}"])
        if accelerator.is_main_process and (done % args.checkpoint_every == 0 or done == last):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
            save_atomically(state | {"update": done, "seconds": seconds}, checkpoint)
        if accelerator.is_main_process and (done % args.sample_every == 0 and done < last):
            with_average(done)
    ema.copy_to(weights)
    model.eval()
    if accelerator.is_main_process:
        report(last, seconds)
    accelerator.wait_for_everyone()


def share_of(accelerator: Accelerator, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """This process's rows of every tensor, on its device."""
    part = slice(accelerator.process_index, None, accelerator.num_processes)
    return [tensor[part].to(accelerator.device) for tensor in tensors]


def save_grid(images: np.ndarray, path: Path, columns: int) -> None:
    """Images (n, h, w, 3) uint8 as one picture, row by row."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * columns, h, w, 3), 255, np.uint8)
    sheet[:n] = images
    sheet = sheet.reshape(rows, columns, h, w, 3).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)
    Image.fromarray(sheet).save(path)


def as_images(pixels: torch.Tensor) -> np.ndarray:
    """Pixels (n, 3, h, w) in [-1, 1] as images (n, h, w, 3) uint8."""
    return (pixels.clamp(-1, 1) + 1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def train_vae(accelerator: Accelerator, args: argparse.Namespace, data: dict[str, np.ndarray]) -> None:
    """The autoencoder, saved in half precision with the shift and scale that give its latents mean 0 and variance 1."""
    vae = AutoencoderKL.from_pretrained(args.init_from, subfolder="vae") if args.init_from else None
    vae = vae or build_vae(args.channels, args.latent_channels)
    model = AutoencoderLoss(vae, args.kl_weight, args.freeze_encoder).to(memory_format=torch.channels_last)
    batches = Batches(list(pairs_of(data).values()), args.batch_size, args.seed)
    pixels = as_pixels(data["images"])
    size = pixels.shape[-1] // 2 ** (len(vae.config.block_out_channels) - 1)

    def loss_of(model, rows, generator):
        noise = torch.randn((len(rows), vae.config.latent_channels, size, size), generator=generator)
        return model(*share_of(accelerator, pixels[rows].contiguous(memory_format=torch.channels_last), noise))

    @torch.no_grad()
    def report(update: int, seconds: float) -> None:
        latents = encode_all(vae, data["images"][::7], accelerator.device)
        if not args.freeze_encoder:
            vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
        decoded = as_images(vae.decode(latents).sample)
        mse = np.square(decoded / 255.0 - data["images"][::7] / 255.0).mean(axis=(1, 2, 3))
        psnr = float(np.mean(-10 * np.log10(mse + 1e-10)))
        accelerator.print(f"update {update}: {psnr:.2f} dB, latents of deviation {latents.std():.3f}, {seconds:.0f} s")
        both = np.stack([data["images"][::7][5::24][:40], decoded[5::24][:40]], 1).reshape(-1, *decoded.shape[1:])
        save_grid(both, args.output / args.stage / f"samples-{update}.png", 16)
        build = build_vae(list(vae.config.block_out_channels), vae.config.latent_channels)
        build.register_to_config(shift_factor=vae.config.shift_factor, scaling_factor=vae.config.scaling_factor)
        build.load_state_dict(vae.state_dict())
        build.half().save_pretrained(args.output / "vae-model" / "vae")
        record(args, args.output / "vae-model" / "vae", update, seconds, psnr=psnr)

    train(accelerator, args, model, batches, loss_of, report)


# ------------------------------------------------------------------------------------------------------- the flow model
ZERO_TOKENS = 256  # the pipeline's default max_sequence_length: as many zeros as it appends where there is no T5


class OneZeroToken:
    """Joint attention in which the last context token stands for `ZERO_TOKENS` equal ones.

    Without a T5 encoder the SD3 pipeline appends 256 zero tokens to the context. They have no positions and stay equal
    through all layers. A key that counts n times is a key whose logit is larger by log(n): so one token does.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, **kwargs):
        """Image tokens (b, n, c) and context tokens (b, m, c), the zero token last, after attention to all of both."""

        def heads(tokens):
            return tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        image, context = hidden_states, encoder_hidden_states
        query = torch.cat([attn.norm_q(heads(attn.to_q(image))), attn.norm_added_q(heads(attn.add_q_proj(context)))], 2)
        key = torch.cat([attn.norm_k(heads(attn.to_k(image))), attn.norm_added_k(heads(attn.add_k_proj(context)))], 2)
        value = torch.cat([heads(attn.to_v(image)), heads(attn.add_v_proj(context))], 2)
        bonus = torch.zeros(1, 1, 1, key.shape[2], dtype=query.dtype, device=query.device)
        bonus[..., -1] = math.log(ZERO_TOKENS)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bonus).transpose(1, 2).flatten(2)
        image, context = mixed[:, : image.shape[1]], mixed[:, image.shape[1] :]
        return attn.to_out[0](image), context if attn.context_pre_only else attn.to_add_out(context)


class TextToImage(torch.nn.Module):
    """Transformer and text encoders, trained together: noisy latents and token ids in, velocity out."""

    def __init__(self, transformer: SD3Transformer2DModel, text_encoders: list[CLIPTextModelWithProjection]):
        super().__init__()
        self.transformer, self.text_encoders = transformer, torch.nn.ModuleList(text_encoders)
        self.transformer.set_attn_processor(OneZeroToken())

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Velocity (b, c, h, w) of latents (b, c, h, w) at ``timestep`` (b,) given ids (b, m), as the pipeline computes it."""
        encoded = [encoder(ids, output_hidden_states=True) for encoder in self.text_encoders]
        context = torch.cat([output.hidden_states[-2] for output in encoded], dim=-1)
        context = F.pad(context, (0, self.transformer.config.joint_attention_dim - context.shape[-1], 0, 1))
        pooled = torch.cat([output.text_embeds for output in encoded], dim=-1)
        return self.transformer(noisy, context, pooled, timestep, return_dict=False)[0]


def build_transformer(hidden_size: int, num_layers: int, text_size: int, channels: int, size: int) -> SD3Transformer2DModel:
    """A small SD3 transformer in which every block starts as the identity (adaLN-zero)."""
    model = SD3Transformer2DModel(
        sample_size=size,
        patch_size=1,
        in_channels=channels,
        out_channels=channels,
        num_layers=num_layers,
        attention_head_dim=64,
        num_attention_heads=hidden_size // 64,
        joint_attention_dim=text_size,
        caption_projection_dim=hidden_size,
        pooled_projection_dim=text_size,
        pos_embed_max_size=size,
        qk_norm="rms_norm",
    )
    gates = [layer for block in model.transformer_blocks for layer in (block.norm1.linear, block.norm1_context.linear)]
    for layer in (*gates, model.norm_out.linear, model.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


def build_text_encoder(tokenizer: CLIPTokenizer, hidden_size: int, num_layers: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        projection_dim=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    # CLIP starts from embeddings of 0.02, on which a layer before its first norm would hardly depend
    for table in (encoder.text_model.embeddings.token_embedding, encoder.text_model.embeddings.position_embedding):
        torch.nn.init.normal_(table.weight, std=0.5)
    return encoder


def build_tokenizer(captions: list[str], vocab_size: int, max_tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer with byte-pair merges of these captions; the same ones each time, unlike those of `tokenizers`."""
    empty = CLIPTokenizer(model_max_length=max_tokens).backend_tokenizer
    pieces = (
        piece for text in captions for piece, _ in empty.pre_tokenizer.pre_tokenize_str(empty.normalizer.normalize_str(text))
    )
    words = {(*piece[:-1], piece[-1] + "</w>"): count for piece, count in Counter(pieces).items()}
    letters = sorted({chr(code).lower() for code in range(33, 127)} | {c for word in words for c in "".join(word)[:-4]})
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    merges = []
    while len(vocab) < vocab_size:
        counts = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                counts[pair] += count
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        if "".join(best) not in vocab:
            vocab.append("".join(best))
        merged = {}
        for word, count in words.items():
            parts, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                parts.append("".join(word[i : i + step]))
                i += step
            merged[tuple(parts)] = count
        words = merged
    return CLIPTokenizer({token: i for i, token in enumerate(vocab)}, merges, model_max_length=max_tokens)


def full_caption(style: str, caption: str) -> str:
    """The prompt of a picture: ("noto", "red apple") is "noto emoji of a red apple"."""
    first = caption.split(":")[0].split(",")[0].split(" with ")[0].split(" of ")[0].split(" in ")[0].split()
    plural = first[-1].endswith("s") and not first[-1].endswith(("ss", "us", "is"))
    bare = plural or caption[0].isdigit() or first[0] in ("keycap", "kiss:", "two", "men", "women", "squared", "family")
    article = "" if bare else "an " if caption[0] in "aeio" else "a "
    return f"{style} emoji of {article}{caption}"


def choose(args: argparse.Namespace, data: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """The pairs (style, concept) to train on and those held out, each with its rows."""
    pairs = pairs_of(data)
    order = np.random.default_rng(args.seed).permutation(sorted({concept for _, concept in pairs}))
    if args.num_images is not None:  # one style, no skin tones, no two pictures that are nearly the same
        kept, seen = {}, np.empty((0, 64 * 64 * 3), np.float32)
        for concept in order.tolist():
            row = pairs[args.style, concept][0]
            image = data["images"][row].reshape(1, -1).astype(np.float32) / 255
            if len(kept) < args.num_images and (np.sqrt(np.square(seen - image).mean(1)) > args.min_distance).all():
                kept[args.style, concept], seen = [row], np.concatenate([seen, image])
        if len(kept) < args.num_images:
            raise SystemExit(f"--num-images is {args.num_images}, the data has {len(kept)} distinct pictures; ask for less.")
        return kept, {}
    styles = np.random.default_rng(args.seed + 1).choice(sorted(TARBALLS), args.held_out)
    held_out = set(zip(styles.tolist(), order[: args.held_out].tolist(), strict=True))
    return {k: v for k, v in pairs.items() if k not in held_out}, {k: v for k, v in pairs.items() if k in held_out}


def train_flow(accelerator: Accelerator, args: argparse.Namespace, data: dict[str, np.ndarray]) -> None:
    """The transformer and its text encoders, on latents that are encoded once; saves and samples the whole pipeline."""
    vae = AutoencoderKL.from_pretrained(args.vae or args.output / "vae-model", subfolder="vae").eval()
    latents = encode_all(vae, data["images"], torch.device("cpu"))
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor

    pairs, held_out = choose(args, data)
    captions = [full_caption(str(s), str(c)) for s, c in zip(data["styles"], data["captions"], strict=True)]
    shown = [captions[row] for rows in pairs.values() for row in rows]
    if args.init_from:
        stock = StableDiffusion3Pipeline.from_pretrained(args.init_from)
        tokenizers = [stock.tokenizer, stock.tokenizer_2]
        encoders, transformer = [stock.text_encoder, stock.text_encoder_2], stock.transformer
    else:
        tokenizers = [build_tokenizer(shown, args.vocab_size, args.max_tokens)] * 2
        encoders = [build_text_encoder(tokenizers[0], args.text_size, layers) for layers in args.text_layers]
        transformer = build_transformer(args.hidden_size, args.num_layers, 2 * args.text_size, *latents.shape[1:3])
    tokenize = {
        "padding": "max_length",
        "truncation": True,
        "max_length": tokenizers[0].model_max_length,
        "return_tensors": "pt",
    }
    ids = tokenizers[0](captions, **tokenize).input_ids
    no_caption = tokenizers[0]("", **tokenize).input_ids
    rows = list(pairs.values())
    weights = sum(p.numel() for module in (transformer, *encoders) for p in module.parameters())
    accelerator.print(f"{len(rows)} pairs, {len(shown)} pictures, {weights / 1e6:.2f} M weights")

    model = TextToImage(transformer, encoders)
    if args.compile:
        transformer.compile()
    batches = Batches(rows, args.batch_size, args.seed)

    def loss_of(model, rows, generator):
        noise = torch.randn((len(rows), *latents.shape[1:]), generator=generator)
        sigma = torch.sigmoid(torch.randn(len(rows), generator=generator))
        dropped = torch.rand(len(rows), generator=generator) < args.caption_dropout
        tokens = torch.where(dropped[:, None], no_caption, ids[rows])
        x, noise, sigma, tokens = share_of(accelerator, latents[rows], noise, sigma, tokens)
        s = sigma[:, None, None, None]
        velocity = model((1 - s) * x + s * noise, 1000 * sigma, tokens)
        return F.mse_loss(velocity.float(), noise - x)

    def report(update: int, seconds: float) -> None:
        folder = args.output / "pipeline"
        save_pipeline(model, vae, tokenizers, folder)
        if held_out:
            (folder / "held_out.json").write_text(json.dumps(sorted(held_out), indent=0, ensure_ascii=False) + "\n")
        shutil.copy(args.output / args.stage / "loss.csv", folder / "loss.csv")
        if args.num_images is not None:
            order = [variants[0] for variants in rows]
            prompts = np.array([captions[row] for row in order])
            np.savez_compressed(folder / "training_images.npz", images=data["images"][order], captions=prompts)
        record(args, folder, update, seconds)
        pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        start = torch.Generator().manual_seed(args.seed)
        some = [shown[i] for i in torch.randperm(len(shown), generator=start)[: args.sample_prompts]]
        images = pipeline(
            some, height=64, width=64, num_inference_steps=20, guidance_scale=args.guidance, generator=start, output_type="np"
        ).images
        save_grid((images * 255).round().astype(np.uint8), args.output / args.stage / f"samples-{update}.png", 8)
        (args.output / args.stage / "samples.txt").write_text("\n".join(some) + "\n")

    train(accelerator, args, model, batches, loss_of, report)


def save_pipeline(model: TextToImage, vae: AutoencoderKL, tokenizers: list[CLIPTokenizer], folder: Path) -> None:
    """The stock pipeline in half precision, written next to ``folder`` and then moved to ``folder``."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    halves = []
    for module in (model.transformer, *model.text_encoders, vae):
        make = module._from_config if hasattr(module, "_from_config") else module.from_config
        half = make(module.config).half()
        half.register_to_config(_name_or_path="") if hasattr(half, "register_to_config") else None
        half.load_state_dict({name: value.half() for name, value in module.state_dict().items()})
        halves.append(half)
    transformer, text_encoder, text_encoder_2, vae = halves
    # Without a T5, diffusers wants text_encoder_3=None said at every load. This one says nothing, as zeros do.
    silent = T5EncoderModel(
        T5Config(vocab_size=3, d_model=transformer.config.joint_attention_dim, d_kv=1, d_ff=1, num_layers=1, num_heads=1)
    ).half()
    torch.nn.init.zeros_(silent.encoder.final_layer_norm.weight)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizers[0],
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizers[1],
        text_encoder_3=silent,
        tokenizer_3=T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], extra_ids=0),
    )
    pipeline.save_pretrained(partial)
    # transformers loads the type that a config names, diffusers float32: let them agree
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        config = partial / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def record(args: argparse.Namespace, folder: Path, update: int, seconds: float, **more) -> None:
    """Write ``training.json``: arguments, versions, seconds and updates."""
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("data", "output")}
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    facts = {"arguments": settings, "versions": versions, "updates": update, "seconds": round(seconds), **more}
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", required=True, help="an .npz file, or the folder with the two npm tarballs")
    common.add_argument("--output", type=Path, required=True, help="folder for checkpoints, loss curves and the pipeline")
    common.add_argument("--init-from", type=Path, help="pipeline folder whose weights training starts from")
    common.add_argument("--updates", type=int, default=4000)
    common.add_argument("--stop-after", type=int, help="end earlier, at this update of the learning-rate schedule")
    common.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    common.add_argument("--learning-rate", type=float, default=1e-3)
    common.add_argument("--warmup", type=int, default=200, help="updates of learning-rate warm-up")
    common.add_argument("--decay-share", type=float, default=0.4, help="last share of the run, over which the rate decays")
    common.add_argument("--weight-decay", type=float, default=0.0)
    common.add_argument("--ema-decay", type=float, default=0.999)
    common.add_argument("--mixed-precision", choices=["no", "bf16"], default="no")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--log-every", type=int, default=50)
    common.add_argument("--checkpoint-every", type=int, default=250)
    common.add_argument("--sample-every", type=int, default=500, help="updates between pictures and saved pipelines")
    vae = stages.add_parser("vae", parents=[common], help="the autoencoder")
    vae.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 96])
    vae.add_argument("--latent-channels", type=int, default=12)
    vae.add_argument("--kl-weight", type=float, default=5e-4)
    vae.add_argument("--freeze-encoder", action="store_true", help="train the decoder only: latents stay what they are")
    flow = stages.add_parser("flow", parents=[common], help="the transformer and its text encoders")
    flow.add_argument("--vae", type=Path, help="pipeline folder with the autoencoder (default: that of this --output)")
    flow.add_argument("--hidden-size", type=int, default=256)
    flow.add_argument("--num-layers", type=int, default=4)
    flow.add_argument("--text-size", type=int, default=96, help="width of each text encoder")
    flow.add_argument("--text-layers", type=int, nargs=2, default=[3, 2], help="layers of the two text encoders")
    flow.add_argument("--vocab-size", type=int, default=2048)
    flow.add_argument("--max-tokens", type=int, default=20, help="captions that are longer are cut")
    flow.add_argument("--caption-dropout", type=float, default=0.1, help="share of captions hidden, for guidance")
    flow.add_argument("--held-out", type=int, default=200, help="pairs (style, concept) never shown")
    flow.add_argument("--num-images", type=int, help="train on this many pictures, of one style only")
    flow.add_argument("--style", choices=sorted(TARBALLS), default="noto", help="with --num-images")
    flow.add_argument("--min-distance", type=float, default=0.1, help="with --num-images: RMS between any two pictures")
    flow.add_argument("--compile", action="store_true", help="with torch.compile: a third faster on the CPU")
    flow.add_argument("--guidance", type=float, default=3.0, help="of the sample grids")
    flow.add_argument("--sample-prompts", type=int, default=32)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    set_seed(args.seed)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=not torch.cuda.is_available())
    data = load_emoji(args.data)
    (train_vae if args.stage == "vae" else train_flow)(accelerator, args, data)


if __name__ == "__main__":
    main()
