"""What must hold for every flow pipeline, as checks that raise; `test_matrix` and the support table run the same ones."""

from __future__ import annotations

import copy
import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModularPipeline, SchedulerMixin
from transformers import ProcessorMixin

from diffusers_kts import PRESETS, KPEMonitorPipeline, KTSFlowMatchScheduler

from .registry import Tiny

ALPHA_0, BETA_0, TAU, K = 0.2, 0.04, 0.6, 3.0  # strong enough to be seen in four steps
SHAPED = {"alpha_0": ALPHA_0, "beta_0": BETA_0, "tau_split": TAU, "k": K}


def eta(t: torch.Tensor) -> torch.Tensor:
    """The gain of `SHAPED`, written out from the paper and not taken from the package."""
    launch = 1 + ALPHA_0 * (1 - t / TAU)
    landing = 1 - BETA_0 * torch.expm1(K * (t - TAU) / (1 - TAU))
    return torch.where(t < TAU, launch, landing)


@dataclass(frozen=True)
class Step:
    """What went into ``scheduler.step`` and what came out; ``t`` and ``dt`` are scalars, or (B, S, 1) for per-token steps."""

    velocity: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    t: torch.Tensor
    dt: torch.Tensor

    def energy(self, gain: torch.Tensor) -> torch.Tensor:
        speed = (gain * self.velocity.double()) ** 2 * self.dt.abs()
        return 0.5 * speed.flatten(1).sum(1)


@dataclass
class Run:
    """The steps of one scheduler object since its `set_timesteps`; ``owner`` keeps the object alive, so that ids differ."""

    owner: Any
    steps: list[Step] = field(default_factory=list)


@dataclass
class Called:
    """A call: its output as tensors, (step, timestep) at each callback of the user, and, where watched, the runs."""

    output: list[torch.Tensor]
    callbacks: list[tuple[int, float]]
    runs: list[Run] = field(default_factory=list)


def tensors(output: Any) -> Iterator[torch.Tensor]:
    """Every array in what a pipeline returns, in order."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, np.ndarray) or hasattr(output, "getpixel"):
        yield torch.from_numpy(np.array(output))
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors(value)


def schedulers(pipe: Any, prefix: str = "") -> dict[str, Any]:
    """Every scheduler of the pipeline by attribute name, also those of pipelines inside it ("generation_pipe.scheduler")."""
    found = {}
    for name, value in [*getattr(pipe, "components", {}).items(), *vars(pipe).items()]:
        if isinstance(value, SchedulerMixin):
            found[prefix + name] = value
        elif isinstance(value, DiffusionPipeline):
            found |= schedulers(value, f"{prefix}{name}.")
    return found


def place(pipe: Any, replacements: dict[str, Any]) -> None:
    if isinstance(pipe, ModularPipeline):
        pipe.update_components(**replacements)
        return
    for name, scheduler in replacements.items():
        *inner, last = name.split(".")
        setattr(functools.reduce(getattr, inner, pipe), last, scheduler)


def _flow_time(sigma: torch.Tensor, scheduler: Any) -> torch.Tensor:
    if scheduler.config.invert_sigmas:
        return sigma
    return 1 / (1 + sigma) if _explodes(scheduler) else 1 - sigma


def _explodes(scheduler: Any) -> bool:
    """Cosmos 2 counts noise as ``sigma / alpha``, up to 80; its flow is ``x / (1 + sigma)``."""
    return float(scheduler.sigmas.max()) > 1.0001


def _in_flow_coordinates(step: Step, sigma: torch.Tensor, sigma_after: torch.Tensor) -> Step:
    before, after = step.before.double() / (1 + sigma), step.after.double() / (1 + sigma_after)
    velocity = (1 + sigma) * step.velocity.double() - step.before.double()
    return Step(velocity, before, after, step.t, 1 / (1 + sigma) - 1 / (1 + sigma_after))


def _measured(scheduler: Any, i: int, per_token: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow time and signed sigma interval of step ``i``; of every token where each has its own noise level."""
    sigmas = scheduler.sigmas.double()
    if per_token is None:
        return _flow_time(sigmas[i], scheduler), sigmas[i + 1] - sigmas[i]
    sigma = (per_token / scheduler.config.num_train_timesteps)[..., None]  # diffusers compares in float32, so we do
    table = scheduler.sigmas.expand(*sigma.shape[:2], -1)
    lower = torch.where(table < sigma - 1e-6, table, 0).amax(-1, keepdim=True)
    return 1 - sigma.double(), (sigma - lower).double()  # callers negate the velocity, and intervals are positive


def _spy_class(cls: type, runs: list[Run]) -> type:
    """A subclass that notes every step, of a copy of the scheduler too; signatures stay, since pipelines look at them."""

    def run_of(scheduler: Any) -> Run:
        return next(run for run in reversed(runs) if run.owner is scheduler)

    @functools.wraps(cls.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(Run(self))
        return cls.set_timesteps(self, *args, **kwargs)

    def deepcopy(self: Any, memo: dict) -> Any:
        twin = cls.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(vars(self), memo))
        runs.append(Run(twin))
        return twin

    @functools.wraps(cls.step)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        velocity, before = model_output.clone(), sample.clone()
        out = cls.step(self, model_output, timestep, sample, *args, **kwargs)
        t, dt = _measured(self, self.step_index - 1, kwargs.get("per_token_timesteps"))
        seen = Step(velocity, before, out[0].clone(), t, dt)
        if _explodes(self):
            seen = _in_flow_coordinates(seen, *self.sigmas[self.step_index - 1 : self.step_index + 1].double())
        run_of(self).steps.append(seen)
        return out

    body = {"set_timesteps": set_timesteps, "step": step, "__deepcopy__": deepcopy, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), body)


class Case:
    """One tiny pipeline and the calls the checks share; each call is made once, when first asked for."""

    def __init__(self, tiny: Tiny) -> None:
        self.tiny, self.pipe = tiny, tiny.pipe
        self.native = schedulers(self.pipe)

    @property
    def has_callback(self) -> bool:
        return "callback_on_step_end" in inspect.signature(self.pipe.__call__).parameters

    def put(self, make: Callable[[Any], Any]) -> dict[str, Any]:
        """Replace every scheduler by what ``make`` makes of the checkpoint's own."""
        made = {name: make(scheduler) for name, scheduler in self.native.items()}
        place(self.pipe, made)
        return made

    def shape(self, **settings: Any) -> dict[str, Any]:
        return self.put(lambda scheduler: KTSFlowMatchScheduler.from_config(scheduler.config, **settings))

    def call(self, pipe: Any, callback: bool = False) -> Called:
        callbacks: list[tuple[int, float]] = []

        def note(pipe: Any, step: int, timestep: Any, kwargs: dict) -> dict:
            callbacks.append((step, float(timestep)))
            return kwargs

        more = {"callback_on_step_end": note} if callback and self.has_callback else {}
        # compiling, as some models do on the way, needs a C++ compiler and half a minute
        with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(0)  # for noise that a pipeline takes from the global generator
            return Called(list(tensors(pipe(**self.tiny.call(), **more))), callbacks)

    def watch(self, **settings: Any) -> Called:
        """A call under our scheduler with these settings, with every step noted."""
        runs: list[Run] = []
        for scheduler in self.shape(**settings).values():
            scheduler.__class__ = _spy_class(type(scheduler), runs)
        called = self.call(self.pipe, callback=True)
        called.runs = [run for run in runs if run.steps]
        return called

    @functools.cached_property
    def euler(self) -> Called:
        """With the stock Euler scheduler on the checkpoint's own schedule."""
        self.put(
            lambda scheduler: (
                scheduler
                if type(scheduler) is FlowMatchEulerDiscreteScheduler
                else FlowMatchEulerDiscreteScheduler.from_config(KTSFlowMatchScheduler.from_config(scheduler.config).config)
            )
        )
        return self.call(self.pipe, callback=True)

    @functools.cached_property
    def off(self) -> Called:
        return self.watch(**PRESETS["off"])

    @functools.cached_property
    def shaped(self) -> Called:
        return self.watch(**SHAPED)

    @functools.cached_property
    def plain_shaped(self) -> list[torch.Tensor]:
        self.shape(**SHAPED)
        return self.call(self.pipe).output

    def monitor(self) -> tuple[list[torch.Tensor], list[Any]]:
        """Output and traces of a monitored call with the schedulers in place."""
        monitor = KPEMonitorPipeline.from_pipe(self.pipe)
        return self.call(monitor).output, monitor.kpe_traces

    @functools.cached_property
    def monitored_native(self) -> tuple[list[torch.Tensor], list[Any]]:
        place(self.pipe, self.native)
        return self.monitor()

    @functools.cached_property
    def monitored_shaped(self) -> tuple[list[torch.Tensor], list[Any]]:
        self.shape(**SHAPED)
        return self.monitor()


def assert_same_bits(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        assert torch.isfinite(e).all(), "the tiny pipeline gives values that are not finite"
        assert torch.equal(a, e), f"outputs differ by up to {float((a.double() - e.double()).abs().max()):.3g}"


def follows(run: Run) -> list[bool]:
    """Whether each step begins where the one before ended; blending and overwritten latents break the chain."""
    return [torch.equal(a.after, b.before) for a, b in zip(run.steps, run.steps[1:], strict=False)]


def check_shaped(case: Case) -> None:
    """Every step is ``x + eta(t) dt v`` by hand, at the noise levels of the unshaped run; nothing else is done to the path."""
    runs = case.shaped.runs
    assert runs, "no step reached the scheduler"
    assert any(step.velocity.any() for run in runs for step in run.steps), "the tiny model's velocity is zero"
    for run in runs:
        for step in run.steps:
            by_hand = step.before.double() + eta(step.t) * step.dt * step.velocity.double()
            torch.testing.assert_close(step.after.double(), by_hand, rtol=1e-5, atol=1e-5)
    for run, plain in zip(runs, case.off.runs, strict=True):
        assert follows(run) == follows(plain)
        for a, b in zip(run.steps, plain.steps, strict=True):
            assert torch.equal(a.t, b.t) and torch.equal(a.dt, b.dt), "the noise levels are not those of the unshaped run"
    pairs = zip(case.shaped.output, case.euler.output, strict=True)
    assert any(not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-4) for a, b in pairs), "shaping does not show"


def check_off(case: Case) -> None:
    """Without shaping the output has the bits of the stock Euler scheduler."""
    assert case.off.runs, "no step reached the scheduler"
    assert_same_bits(case.off.output, case.euler.output)


def check_monitored(case: Case) -> None:
    """A monitored call gives the bits of an unmonitored one, with the checkpoint's own scheduler and with ours."""
    place(case.pipe, case.native)
    assert_same_bits(case.monitored_native[0], case.call(case.pipe).output)
    assert_same_bits(case.monitored_shaped[0], case.plain_shaped)


def check_energy(case: Case) -> None:
    """Model and path energy of every stream and run are the sums by hand over the velocities that reached `step`."""
    records = [
        (case.shaped.runs, case.monitored_shaped[1], "model_energy", torch.ones_like),
        (case.shaped.runs, case.monitored_shaped[1], "path_energy", eta),
    ]
    if all(type(scheduler) is FlowMatchEulerDiscreteScheduler for scheduler in case.native.values()):
        records.append((case.off.runs, case.monitored_native[1], "path_energy", torch.ones_like))
    for runs, traces, name, gain in records:
        by_hand = [sum(step.energy(gain(step.t)) for step in run.steps) for run in runs]
        recorded = [getattr(trace, name).total.double() for trace in traces]
        assert len(recorded) == len(by_hand) > 0
        for a, b in zip(sorted(recorded, key=torch.sum), sorted(by_hand, key=torch.sum), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-12)


def check_callback(case: Case) -> str | None:
    """The user's callback fires at the steps and timesteps of the stock Euler scheduler, monitored or not."""
    if not case.has_callback:
        return "the pipeline has none"
    case.shape(**SHAPED)
    monitored = case.call(KPEMonitorPipeline.from_pipe(case.pipe), callback=True)
    assert len(case.euler.callbacks) > 0
    same = case.shaped.callbacks == case.off.callbacks == case.euler.callbacks == monitored.callbacks
    assert same, "steps or timesteps of the callbacks differ"
    return None


def check_saved(case: Case) -> None:
    """A saved pipeline loads with our scheduler, its settings, and the same output."""
    placed = case.shape(**SHAPED)
    with tempfile.TemporaryDirectory() as folder:
        case.pipe.save_pretrained(folder)
        if isinstance(case.pipe, ModularPipeline):
            loaded = case.pipe.blocks.init_pipeline(folder)
            loaded.load_components()
        else:
            loaded = DiffusionPipeline.from_pretrained(folder, **_not_saved(case.pipe))
    loaded.set_progress_bar_config(disable=True)
    reloaded = schedulers(loaded)
    assert reloaded.keys() == placed.keys()
    for name, scheduler in placed.items():
        assert type(reloaded[name]) is KTSFlowMatchScheduler, f"{name} came back as {type(reloaded[name]).__name__}"
        assert _settings(reloaded[name]) == _settings(scheduler)
    for a, b in zip(case.call(loaded).output, case.plain_shaped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def _not_saved(pipe: Any) -> dict[str, Any]:
    """Components handed to `from_pretrained`: encoders left out, and processors, which need torchvision to load."""
    return {name: c for name, c in pipe.components.items() if c is None or isinstance(c, ProcessorMixin)}


def _settings(scheduler: Any) -> dict[str, Any]:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


CHECKS: dict[str, Callable[[Case], str | None]] = {
    "shaped": check_shaped,
    "off": check_off,
    "monitored": check_monitored,
    "energy": check_energy,
    "callback": check_callback,
    "saved": check_saved,
}
