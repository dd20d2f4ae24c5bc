"""Shaping: all settings of kinetic trajectory shaping, as one value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .gain import Gain, is_number


@dataclass(frozen=True)
class Shaping(Gain):
    """The gain ``eta(t)`` and the touchdown: what every KTS scheduler, preset, command and tuning study speaks.

    Examples:
        >>> round(Shaping(beta_0=0.02)(1.0), 4)  # eta at the end of the path
        0.6183
        >>> Shaping(alpha_0=0, beta_0=0).is_off
        True

    Args:
        alpha_0: strength of the launch, see `Gain`.
        beta_0: strength of the landing.
        tau_split: flow time, in (0, 1), at which the landing begins.
        k: rate of the exponential shapes.
        early_schedule: "linear", "constant" or "exponential".
        late_schedule: "linear", "constant" or "exponential".
        touchdown: flow time, in (0, 1), of the one last step to the data estimate ``x + (1 - t) v``; None for none. Not
            from the paper.

    Raises:
        ValueError: a setting is out of range.
    """

    touchdown: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.touchdown is not None and not (is_number(self.touchdown) and 0 < self.touchdown < 1):
            raise ValueError(f"touchdown is {self.touchdown!r}; give a flow time strictly between 0 and 1, or None for none.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Shaping":
        """The shaping settings among ``settings``, such as a scheduler's configuration; defaults for those not named."""
        return cls(**{name: settings[name] for name in SHAPING if name in settings})

    @property
    def is_off(self) -> bool:
        """Whether nothing is shaped."""
        return self.is_identity and self.touchdown is None

    @property
    def marks(self) -> tuple[float, ...]:
        """Flow times at which something changes."""
        return (self.tau_split,) if self.touchdown is None else (self.tau_split, self.touchdown)

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, as the schedulers take them."""
        return asdict(self)


SHAPING = tuple(field.name for field in fields(Shaping))
