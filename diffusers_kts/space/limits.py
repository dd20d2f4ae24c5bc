"""What a visitor may ask for. Enforced on the server: the ranges of the page bind nobody who calls the API."""

import math
from dataclasses import dataclass
from typing import Any

from ..gain import SCHEDULES, Gain

RANGES = {"alpha_0": (0.0, 0.5), "beta_0": (0.0, 0.1), "tau_split": (0.05, 0.95), "touchdown": (0.3, 1.0)}
ALL = "all classes"
MAX_SEED = 2**31 - 1
MAX_GUIDANCE = 20.0
MAX_PROMPT = 500
MAX_STEPS = 100
MAX_IMAGES = 16
POPULATION = 64
MAX_SWEEP = 5  # values of each of the two settings


class Refused(ValueError):
    """A visitor's input is out of range; the sentence is meant for the visitor."""


def number(name: str, value: Any, low: float, high: float, whole: bool = False) -> Any:
    """``value``, once it is a number of the range.

    Raises:
        Refused: it is not.
    """
    kind = "whole number" if whole else "number"
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or not low <= value <= high or (whole and value != int(value)):
        raise Refused(f"{name} is {value!r:.60}; give a {kind} from {low:g} to {high:g}.")
    return int(value) if whole else float(value)


def choice(name: str, value: Any, options: Any) -> Any:
    if not isinstance(value, str) or value not in options:
        raise Refused(f"{name} is {value!r:.60}; choose one of {', '.join(options)}.")
    return value


def steepest_landing(late_schedule: str) -> float:
    """The ``beta_0`` above which the velocity would reverse at the end: where ``eta(1) = 0``; eta is linear in it."""
    small = 1e-6
    return small / (1 - Gain(alpha_0=0, beta_0=small, late_schedule=late_schedule)(1.0))


@dataclass(frozen=True)
class Shaping:
    """Shaping settings that are in range; ``touchdown`` 1 is none. Unsafe settings are in range, see `check`.

    Raises:
        Refused: a setting is out of range.
    """

    alpha_0: float = 0.0
    beta_0: float = 0.0
    tau_split: float = 0.6
    touchdown: float = 1.0
    early_schedule: str = "linear"
    late_schedule: str = "exponential"

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            object.__setattr__(self, name, number(name, getattr(self, name), low, high))
        for name in ("early_schedule", "late_schedule"):
            choice(name, getattr(self, name), SCHEDULES)

    def settings(self) -> dict[str, Any]:
        """As `KTSFlowMatchScheduler` takes them."""
        return vars(self) | {"touchdown": None if self.touchdown >= 1 else self.touchdown}

    @property
    def excess(self) -> float:
        """How often ``beta_0`` holds the largest safe one; above 1 the velocity would reverse."""
        return self.beta_0 / steepest_landing(self.late_schedule)

    def check(self) -> "Shaping":
        """Raises Refused where the velocity would reverse."""
        if self.excess > 1:
            limit = steepest_landing(self.late_schedule)
            raise Refused(
                f"beta_0 is {self.beta_0:g}: the velocity would reverse near the end; with the {self.late_schedule} landing "
                f"give at most {limit:.4g}."
            )
        return self

    def eta(self, t: float) -> float:
        """The gain at flow time ``t``, also in the unsafe range, which `Gain` refuses: the landing is linear in beta_0."""
        scale = max(1.0, self.excess * (1 + 1e-9))
        gain = Gain(self.alpha_0, self.beta_0 / scale, self.tau_split, Gain.k, self.early_schedule, self.late_schedule)
        eta = gain(t)
        return eta if t < self.tau_split else 1 - scale * (1 - eta)


@dataclass(frozen=True)
class Drawing:
    """What to draw: the same noises for every shaping.

    Args:
        subject (`str`): name of a class, "all classes", or a prompt; several, one per line, are drawn in turn.
        seed (`int`): noise of image i depends on (seed, i) alone.
        steps (`int`): Euler steps.
        count (`int`): images.
        guidance_scale (`float`, *optional*): None is the model's own.
        negative_prompt (`str`): of a model that takes one.

    Raises:
        Refused: a number is out of range.
    """

    subject: str
    seed: int = 0
    steps: int = 50
    count: int = 4
    guidance_scale: float | None = None
    negative_prompt: str = ""
    max_steps: int = MAX_STEPS
    max_count: int = MAX_IMAGES

    def __post_init__(self) -> None:
        if not isinstance(self.subject, str) or not self.subject.strip() or len(self.subject) > MAX_PROMPT:
            raise Refused(f"the prompt or class is {self.subject!r:.60}; give 1 to {MAX_PROMPT} characters.")
        if not isinstance(self.negative_prompt, str) or len(self.negative_prompt) > MAX_PROMPT:
            raise Refused(f"the negative prompt is {self.negative_prompt!r:.60}; give at most {MAX_PROMPT} characters.")
        if self.guidance_scale is not None:
            scale = number("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE)
            object.__setattr__(self, "guidance_scale", scale)
        object.__setattr__(self, "seed", number("seed", self.seed, 0, MAX_SEED, whole=True))
        object.__setattr__(self, "steps", number("steps", self.steps, 1, self.max_steps, whole=True))
        object.__setattr__(self, "count", number("images", self.count, 1, self.max_count, whole=True))

    @property
    def subjects(self) -> list[str]:
        """What each image shows: the lines of ``subject``, in turn."""
        lines = [line.strip() for line in self.subject.splitlines() if line.strip()]
        return [lines[i % len(lines)] for i in range(self.count)]


@dataclass(frozen=True)
class About:
    """What the page has to know of a model.

    Attributes:
        classes: to choose from; empty for a model that takes prompts.
        suggestions: prompts that the model draws well.
        guidance_scale: unless a visitor gives another; None if the model takes none.
        takes_negative_prompt: whether it does.
        knows_training: whether its training images are known.
    """

    classes: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    guidance_scale: float | None = None
    takes_negative_prompt: bool = False
    knows_training: bool = False

    def check(self, drawing: Drawing) -> None:
        """Raises Refused for what the model does not take."""
        if self.classes and drawing.subject not in self.classes:
            raise Refused(f"there is no class {drawing.subject!r:.60}; choose from {', '.join(self.classes)}.")
        if drawing.negative_prompt and not self.takes_negative_prompt:
            raise Refused("this model takes no negative prompt; leave it empty.")
        if self.guidance_scale is None and drawing.guidance_scale not in (None, 1.0):
            raise Refused(f"guidance_scale is {drawing.guidance_scale:g}, but this model has no guidance; give 1.")
