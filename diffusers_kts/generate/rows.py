"""The row of metadata of every sample: what drew it, and its energies."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..kpe.trace import KPETrace
from ..sampling.columns import as_written
from ..sampling.prompts import Prompt
from ..seeding import sample_seed
from ..shaping import SHAPING
from .settings import ENERGIES, GenerateSettings

MEASURED = ("per_dim", "excess", "memorization_probability", "flagged")


class Rows:
    """Makes rows, all with the same columns.

    Args:
        id2label: names of the classes; None for a model that takes prompts.
        guidance_scale: as the pipeline is given it, or its own default.
    """

    def __init__(
        self,
        settings: GenerateSettings,
        prompts: Sequence[Prompt],
        columns: Mapping[str, type],
        id2label: Mapping[int, str] | None,
        guidance_scale: float | None,
    ) -> None:
        self.settings, self.prompts, self.id2label, self.guidance_scale = settings, prompts, id2label, guidance_scale
        self.columns = columns
        self.negative = settings.negative_prompt is not None or any(prompt.arguments for prompt in prompts)

    def __call__(self, indices: Sequence[int], trace: KPETrace) -> list[dict[str, Any]]:
        """A row per sample of ``trace``, whose index in the job is given, without ``file_name``."""
        s, energies = self.settings, trace.to_dict()
        constant = {"network_calls": trace.num_steps, "guidance_scale": self.guidance_scale}
        constant |= {"scheduler": trace.settings.get("scheduler")} | {name: trace.settings.get(name) for name in SHAPING}
        constant["tau_split"] = trace.tau_split  # divides early from late without shaping, too
        rows = []
        for position, index in enumerate(indices):
            number = index // s.images_per_prompt
            prompt = self.prompts[number]
            row: dict[str, Any] = {"index": index} | self._subject(prompt)
            row |= {"prompt_index": number, "candidate": index % s.images_per_prompt}
            row |= {"seed": s.seed, "generator_seed": sample_seed(s.seed, index)}
            row |= {name: energies[name][position] for name in (*ENERGIES, *MEASURED) if name in energies}
            rows.append(row | constant | self._carried(prompt))
        return rows

    def _carried(self, prompt: Prompt) -> dict[str, Any]:
        return {name: as_written(prompt.columns.get(name), kind, self.settings.format) for name, kind in self.columns.items()}

    def _subject(self, prompt: Prompt) -> dict[str, Any]:
        if self.id2label is None:
            negative = {"negative_prompt": self.settings.negative_prompt} if self.negative else {}
            return {"prompt": prompt.text} | negative | prompt.arguments
        by_name = {name.lower(): key for key, name in self.id2label.items()}
        label = by_name[prompt.text.lower()] if isinstance(prompt.text, str) else prompt.text
        return {"label": label, "class_name": self.id2label.get(label, str(label))}
