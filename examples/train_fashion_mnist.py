r"""Train a small class-conditional flow-matching transformer on Fashion-MNIST and save it as a diffusers pipeline.

This is the script behind the two models that ship inside ``diffusers_kts``:

    # every training image: the generalizing model
    python examples/train_fashion_mnist.py --data fashion_mnist.npz --output runs/generalizing --updates 18000

    # the first n training images only, no label dropout, long enough: the memorizing model. It was carried on twice, each
    # time in the same folder, until its F_mem was that of the paper's model
    memorizing="--data fashion_mnist.npz --output runs/memorizing --num-images 1024 --label-dropout 0 \
        --patch-size 14 --hidden-size 256 --num-layers 3"
    python examples/train_fashion_mnist.py $memorizing --updates 34000 --stop-after 30000
    python examples/train_fashion_mnist.py $memorizing --updates 48000
    python examples/train_fashion_mnist.py $memorizing --updates 56000

``--data`` takes an ``.npz`` with ``x_train`` (n, 28, 28) uint8 and ``y_train`` (n,), or ``hub``, which downloads
``zalando-datasets/fashion_mnist`` with the ``datasets`` library. Stop the script at any time: started again with the same
arguments it resumes from its last checkpoint, and draws the batches that an uninterrupted run would have drawn.

The path is ``x_t = t x_1 + (1 - t) x_0`` with ``sigma = 1 - t``; the network gets ``1000 sigma`` and learns
``dx/dsigma = x_0 - x_1``, which is what diffusers' flow schedulers integrate. ``sigma`` is drawn from a logit-normal.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from diffusers.models.embeddings import LabelEmbedding
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from tqdm.auto import tqdm

from diffusers_kts import ClassConditionalFlowPipeline

CLASS_NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
NUM_CLASSES = len(CLASS_NAMES)
CHECKPOINT = "checkpoint.pt"


def load_images(source: str, num_images: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [-1, 1] of shape (n, 1, 28, 28) and labels of shape (n,), from an ``.npz`` file or the Hub."""
    if source == "hub":
        from datasets import load_dataset

        split = load_dataset("zalando-datasets/fashion_mnist", split="train").with_format("numpy")
        x, y = np.stack(split["image"]), np.asarray(split["label"])
    else:
        with np.load(source) as archive:
            x, y = archive["x_train"], archive["y_train"]
    if num_images is not None:
        if not 1 <= num_images <= len(x):
            raise SystemExit(f"--num-images is {num_images}, the data has {len(x)} training images; ask for 1 to {len(x)}.")
        x, y = x[:num_images], y[:num_images]
    images = torch.from_numpy(x.astype(np.float32) / 127.5 - 1.0)[:, None]
    return images, torch.from_numpy(y.astype(np.int64))


def build_transformer(hidden_size: int, num_layers: int, patch_size: int) -> DiTTransformer2DModel:
    """A DiT for 28x28 grey images, initialised so that every block starts as the identity (adaLN-zero)."""
    model = DiTTransformer2DModel(
        sample_size=28,
        in_channels=1,
        patch_size=patch_size,
        num_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        attention_head_dim=32,
        num_embeds_ada_norm=NUM_CLASSES,
    )
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
    for layer in (model.proj_out_1, model.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for module in model.modules():
        if isinstance(module, LabelEmbedding):  # it would drop labels independently in every block; we drop them once
            module.dropout_prob = 0.0
    return model


def learning_rate(update: int, updates: int, peak: float, warmup: int = 500, decay_share: float = 0.3) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last ``decay_share`` of the run."""
    left = (updates - update) / (decay_share * updates)
    return peak * min(1.0, (update + 1) / warmup, left)


def flow_matching_loss(model, images, labels, batch_size, label_dropout, generator) -> torch.Tensor:
    index = torch.randint(len(images), (batch_size,), generator=generator)
    x1, y = images[index], labels[index]
    x0 = torch.randn(x1.shape, generator=generator)
    sigma = torch.sigmoid(torch.randn(batch_size, generator=generator))
    y = torch.where(torch.rand(batch_size, generator=generator) < label_dropout, NUM_CLASSES, y)
    s = sigma[:, None, None, None]
    velocity = model((1 - s) * x1 + s * x0, timestep=1000 * sigma, class_labels=y).sample
    return torch.nn.functional.mse_loss(velocity, x0 - x1)


def save_atomically(state: dict, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(args: argparse.Namespace) -> DiTTransformer2DModel:
    torch.manual_seed(args.seed)
    images, labels = load_images(args.data, args.num_images)
    model = build_transformer(args.hidden_size, args.num_layers, args.patch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)

    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint, log = args.output / CHECKPOINT, args.output / "loss.csv"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        start = state["update"]
        print(f"going on from update {start}")
    else:
        log.write_text("update,loss,learning_rate,seconds\n")

    model.train()
    running, began = [], time.time()
    last = min(args.updates, args.stop_after or args.updates)
    for update in tqdm(range(start, last), initial=start, total=last, mininterval=30):
        # a resumed run draws the same batches; torch's CPU generator reads 32 bits of its seed
        generator = torch.Generator().manual_seed((args.seed * 1_000_003 + update) % 2**32)
        lr = learning_rate(update, args.updates, args.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = flow_matching_loss(model, images, labels, args.batch_size, args.label_dropout, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(model.parameters())
        running.append(loss.item())
        done = update + 1
        if done % args.log_every == 0:
            with log.open("a", newline="") as file:
                csv.writer(file).writerow([done, f"{np.mean(running):.6f}", f"{lr:.3e}", f"{time.time() - began:.1f}"])
            running.clear()
        if done % args.checkpoint_every == 0 or done == last:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically(state | {"ema": ema.state_dict(), "update": done}, checkpoint)
        if args.snapshot_every and done % args.snapshot_every == 0:
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            weights = {name: value.half() for name, value in model.state_dict().items()}
            ema.restore(model.parameters())
            folder = args.output / "snapshots"
            folder.mkdir(exist_ok=True)
            save_file(weights, folder / f"update-{done:06d}.safetensors")
    ema.copy_to(model.parameters())
    return model.eval()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz file, or 'hub'")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoint, loss curve and pipeline")
    parser.add_argument("--num-images", type=int, help="use only the first n training images (default: all)")
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--stop-after", type=int, help="end earlier, at this update of the learning-rate schedule")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--label-dropout", type=float, default=0.1, help="share of labels hidden, for guidance")
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--num-layers", type=int, default=5)
    parser.add_argument("--patch-size", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--checkpoint-every", type=int, default=1000)
    parser.add_argument("--snapshot-every", type=int, help="also keep the averaged weights at these updates, in snapshots/")
    return parser.parse_args()


def save_pipeline(model: DiTTransformer2DModel, args: argparse.Namespace) -> None:
    """The pipeline in half precision, its settings and loss curve, and the training images where they are few."""
    pipeline = ClassConditionalFlowPipeline(
        model.half(),
        FlowMatchEulerDiscreteScheduler(),
        id2label=dict(enumerate(CLASS_NAMES)),
        guidance_trained=args.label_dropout > 0,
    )
    folder = args.output / "pipeline"
    pipeline.save_pretrained(folder)
    settings = {k: v for k, v in vars(args).items() if not isinstance(v, Path)} | {"data": Path(args.data).name}
    (folder / "training.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "loss.csv").write_text((args.output / "loss.csv").read_text())
    if args.num_images is not None:
        images, labels = load_images(args.data, args.num_images)
        pixels = ((images[:, 0] + 1) * 127.5).round().to(torch.uint8)
        np.savez_compressed(folder / "training_images.npz", images=pixels.numpy(), labels=labels.to(torch.uint8).numpy())


def main() -> None:
    args = parse_args()
    save_pipeline(train(args), args)


if __name__ == "__main__":
    main()
