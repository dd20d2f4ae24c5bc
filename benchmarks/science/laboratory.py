"""Draws of one model with many samplers from the same noises, kept in ``benchmarks/cache/`` so that nothing is drawn twice.

The noise of sample ``i`` depends on (seed, i) alone and its class is ``i % 10``, so every sampler starts from the same
noises. Samplers that differ in their landing only share the launch, and touchdowns are read off the run that they cut short:
both give the same bits as a run of their own.
"""

import functools
import hashlib
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.science.fashion_mnist import CACHE, Data, to_images
from benchmarks.science.recoding import RecodedVelocity
from diffusers_kts import (
    ClassConditionalFlowPipeline,
    KPETrace,
    KTSFlowMatchHeunScheduler,
    KTSFlowMatchScheduler,
    embedded_model,
)
from diffusers_kts.flow_coordinates import ON_GRID, flow_times
from diffusers_kts.kpe.sums import squared_norm
from diffusers_kts.pipelines.pipeline_flow_class_conditional import cosine_sigmas
from diffusers_kts.seeding import sample_seed

BLOCK = 250  # samples drawn at once
NUM_CLASSES = 10
TOUCHDOWNS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # read off every run of 100 uniform steps without a landing
READ_OFF = (*TOUCHDOWNS, 0.82)  # for centered data of range 1, .82 is what .7 is for data in [-1, 1]


@dataclass(frozen=True)
class Model:
    """A velocity network and the images it was trained on, (n, 1, 28, 28) in [0, 1]."""

    name: str
    network: DiTTransformer2DModel | RecodedVelocity
    training: torch.Tensor

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()[:12]

    def recoded(self) -> "Model":
        """The same model for data as the reference code has them: less the mean training image, range 1."""
        return replace(self, network=RecodedVelocity(self.network, (2 * self.training - 1).mean(0)))

    def to_pixels(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 28, 28) in [0, 1] of latents."""
        return to_pixels(self.network.decode(x) if isinstance(self.network, RecodedVelocity) else x)


def load_model(path: str | Path, data: Data, num_images: int = 1024) -> Model:
    """A model by the name of an embedded one, a pipeline's folder, or a ``.safetensors`` snapshot of
    ``examples/train_fashion_mnist.py`` with the architecture of the embedded memorizing model, trained on the first
    ``num_images``. A pipeline without ``training_images.npz`` was trained on all of them."""
    snapshot = Path(path).suffix == ".safetensors"
    folder = embedded_model("memorizing") if snapshot else Path(path)
    if not folder.is_dir():
        folder = embedded_model(str(path))
    network = ClassConditionalFlowPipeline.from_pretrained(folder).transformer.eval()
    shipped, training = folder / "training_images.npz", data.x_train
    if snapshot:
        network.load_state_dict(load_file(path))
        training = data.x_train[:num_images]
    elif shipped.exists():
        with np.load(shipped) as archive:
            training = to_images(archive["images"])
    name = f"{Path(path).parents[1].name}/{Path(path).stem}" if snapshot else short_name(folder)
    return Model(name, network, training)


def short_name(path: str | Path) -> str:
    """What a page calls the model of a folder: of ``runs/n512/pipeline`` n512."""
    folder = Path(path)
    return folder.parent.name if folder.name == "pipeline" else folder.name


@dataclass(frozen=True)
class Sampler:
    """A sampler: the settings of `KTSFlowMatchScheduler`, the grid and the solver. As it stands, plain Euler.

    ``grid``: "uniform", ``sigma = 1 - i/N``; "cosine", ``sigma = cos^2(pi i / 2N)``; or "coarse", uniform up to
    ``tau_split``, then two steps. ``solver``: "euler", or "heun", ``steps / 2`` steps of two network calls, the last step
    corrected too, as in the reference code.
    """

    alpha_0: float = 0.0
    beta_0: float = 0.0
    tau_split: float = 0.6
    early_schedule: str = "linear"
    late_schedule: str = "exponential"
    touchdown: float | None = None
    gain: tuple[float, ...] | None = None
    steps: int = 100
    grid: str = "uniform"
    solver: str = "euler"

    @property
    def key(self) -> str:
        """The settings that matter, for file names."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        settings |= {name: float(settings[name]) for name in ("alpha_0", "beta_0", "tau_split")}  # 0 and 0.0 are one sampler
        if not self.alpha_0:
            del settings["early_schedule"]
        if not self.beta_0:
            del settings["late_schedule"]
        if self.gain is None:
            del settings["gain"]
        else:
            settings["gain"] = hashlib.sha256(repr(self.gain).encode()).hexdigest()[:12]
        return "-".join(f"{name}={value}" for name, value in settings.items())

    def sigmas(self) -> list[float]:
        n = self.steps // 2 if self.solver == "heun" else self.steps
        if self.grid == "cosine":
            return cosine_sigmas(n)
        uniform = [1 - i / n for i in range(n)]
        if self.grid == "coarse":
            late = 1 - self.tau_split
            return [sigma for sigma in uniform if sigma > late + 1e-6] + [late, late / 2]
        return uniform

    @property
    def network_calls(self) -> int:
        return len(self.scheduler().timesteps)

    @property
    def levels(self) -> torch.Tensor:
        """(N + 1,) noise levels of the steps."""
        sigmas = self.scheduler().sigmas
        return torch.cat([sigmas[:1], sigmas[1::2]]) if self.solver == "heun" else sigmas

    @property
    def gains(self) -> torch.Tensor:
        """(N,) by which each step's displacement is scaled; of Heun's the mean of the gains at both ends."""
        gains = self.scheduler().gains
        return (gains[::2] + gains[1::2]) / 2 if self.solver == "heun" else gains

    def scheduler(self) -> KTSFlowMatchScheduler:
        """With its timesteps set."""
        shaping = {f.name: getattr(self, f.name) for f in fields(self)[:7]}
        heun = self.solver == "heun"
        scheduler = KTSFlowMatchHeunScheduler(**shaping, correct_last_step=True) if heun else KTSFlowMatchScheduler(**shaping)
        scheduler.set_timesteps(sigmas=self.sigmas())
        return scheduler


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


COLUMNS = ("x", "v", "power", "turn")


@dataclass
class Draw:
    """What a sampler did, or has done so far.

    Attributes:
        x, v: latents (B, 1, 28, 28), in [-1, 1] unless the model is recoded, and the last velocity.
        power, turn: (B, N) ``||v_i||^2`` and ``||v_i - v_{i-1}||`` (0 at the first step), a column per step.
        estimates: the data estimate ``x + (1 - t) v`` at the flow times of `READ_OFF`, latents.
        to_pixels: of the model.
    """

    x: torch.Tensor
    v: torch.Tensor
    power: torch.Tensor
    turn: torch.Tensor
    estimates: dict[float, torch.Tensor]
    to_pixels: Callable[[torch.Tensor], torch.Tensor] = to_pixels

    @property
    def images(self) -> torch.Tensor:
        """(B, 1, 28, 28) in [0, 1], as the pipeline makes them."""
        return self.to_pixels(self.x)

    def trace(self, sampler: Sampler) -> KPETrace:
        """The energy record; ``sampler`` is the one that drew this, with Euler steps."""
        sigmas, d = sampler.scheduler().sigmas, self.x[0].numel()
        return KPETrace(self.power, sigmas, flow_times(sigmas), sampler.gains, sampler.tau_split, d, turn=self.turn)

    @classmethod
    def start(cls, noise: torch.Tensor) -> "Draw":
        empty = noise.new_empty(len(noise), 0)
        return cls(noise, torch.zeros_like(noise), empty, empty, {})

    def step(self, x: torch.Tensor, v: torch.Tensor, sigma: float) -> None:
        """One step was made along ``v``, from ``self.x`` to ``x``."""
        turn = squared_norm(v - self.v).sqrt() * bool(self.power.shape[1])
        self.power = torch.cat([self.power, squared_norm(v)[:, None]], 1)
        self.turn = torch.cat([self.turn, turn[:, None]], 1)
        for t in READ_OFF:
            if abs(1 - sigma - t) < ON_GRID:
                self.estimates[t] = self.x - sigma * v
        self.x, self.v = x, v

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name) for name in COLUMNS}
        tensors |= {f"estimate {t}": x for t, x in self.estimates.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Draw":
        tensors = load_file(path)
        return cls(
            **{name: tensors[name] for name in COLUMNS},
            estimates={float(name.split()[1]): x for name, x in tensors.items() if name.startswith("estimate")},
        )

    def first(self, count: int) -> "Draw":
        columns = {name: getattr(self, name)[:count] for name in COLUMNS}
        return Draw(**columns, estimates={t: x[:count] for t, x in self.estimates.items()})

    @classmethod
    def cat(cls, parts: "list[Draw]") -> "Draw":
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS}
        return cls(**columns, estimates={t: torch.cat([part.estimates[t] for part in parts]) for t in parts[0].estimates})


@torch.no_grad()
def integrate(network: nn.Module, sampler: Sampler, labels: torch.Tensor, draw: Draw, stop: int | None = None) -> Draw:
    """Go on from ``draw`` up to evaluation ``stop``, with the scheduler's own steps."""
    scheduler, first = sampler.scheduler(), draw.power.shape[1]
    scheduler.set_begin_index(first)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the run begins at step")  # the steps before were made by another call
        for i, timestep in enumerate(scheduler.timesteps[first:stop], first):
            v = network(draw.x, timestep=timestep.expand(len(labels)), class_labels=labels).sample
            draw.step(scheduler.step(v, timestep, draw.x)[0], v, float(scheduler.sigmas[i]))
    return draw


class Laboratory:
    """One model and its kept draws: samples 0 to ``count - 1`` of each seed, in blocks that are drawn and kept one by one."""

    def __init__(self, model: Model, count: int, cache: Path = CACHE) -> None:
        self.model, self.count, self.cache = model, count, cache / model.digest

    @property
    def labels(self) -> torch.Tensor:
        return torch.arange(self.count) % NUM_CLASSES

    def draw(self, sampler: Sampler, seed: int) -> Draw:
        """What ``sampler`` makes of the noises of ``seed``."""
        blocks = [range(i, min(i + BLOCK, self.count)) for i in range(0, self.count, BLOCK)]
        return replace(Draw.cat([self._draw(sampler, seed, block) for block in blocks]), to_pixels=self.model.to_pixels)

    def _draw(self, sampler: Sampler, seed: int, block: range) -> Draw:
        plain, t_d = replace(sampler, touchdown=None), sampler.touchdown
        if t_d in READ_OFF and plain == Sampler(alpha_0=sampler.alpha_0, steps=100):
            whole = self._draw(plain, seed, block)
            return replace(whole, x=whole.estimates[t_d])
        return self._kept(sampler.key, seed, block, lambda: self._integrate(sampler, seed, block))

    def _kept(self, name: str, seed: int, block: range, work: Callable[[], Draw]) -> Draw:
        path = self.cache / name / f"seed={seed}-{block.start}-{block.stop}.safetensors"
        for kept in self.cache.glob(f"{name}/seed={seed}-{block.start}-*.safetensors"):
            if int(kept.stem.split("-")[-1]) >= block.stop:  # drawn before, or the beginning of a larger block
                return Draw.load(kept).first(len(block))
        began = time.perf_counter()
        work().save(path)
        print(f"{self.model.name}: {name} {path.stem}, {time.perf_counter() - began:.0f} s", flush=True)
        return Draw.load(path)

    def _integrate(self, sampler: Sampler, seed: int, block: range) -> Draw:
        labels, draw = torch.tensor(block) % NUM_CLASSES, Draw.start(self.noise(seed, block))
        if sampler.solver == "euler" and sampler.touchdown is sampler.gain is None:  # samplers with the same launch share it
            t = flow_times(sampler.scheduler().sigmas, marks=[sampler.tau_split])
            launch, stop = replace(sampler, beta_0=0.0), int((t < sampler.tau_split).sum())
            work = functools.partial(integrate, self.model.network, launch, labels, draw, stop)
            draw = self._kept(f"launch-{launch.key}", seed, block, work)
        return integrate(self.model.network, sampler, labels, draw)

    def noise(self, seed: int, block: range) -> torch.Tensor:
        generators = (torch.Generator().manual_seed(sample_seed(seed, i)) for i in block)
        return torch.stack([torch.randn(self.model.training.shape[1:], generator=generator) for generator in generators])
