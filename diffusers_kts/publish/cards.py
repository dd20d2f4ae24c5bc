"""The cards, from templates and measured numbers: each number is read from a JSON file that a script wrote, none is typed."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json
from ..models import CLASS_CONDITIONAL, embedded_model

KINDS = ("scheduler", *sorted(CLASS_CONDITIONAL), "space", "dataset")
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Card:
    """The text of a ``README.md``, the results it cites, and pictures it shows, drawn when they are needed."""

    kind: str
    text: str
    sources: tuple[Path, ...]
    pictures: dict[str, Callable[[Path], None]]


class Results:
    """Numbers in the JSON files of a folder; remembers which files were read.

    Args:
        folder (`Path`): where the benchmark scripts write, ``benchmarks/results``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[str, Any] = {}

    def __call__(self, file: str, *keys: str) -> Any:
        """The value under ``keys``.

        Raises:
            ValueError: there is no such file, or nothing under these keys.
        """
        path = self.folder / file
        if file not in self.read:
            if not path.is_file():
                raise ValueError(f"{path} is missing, which the card cites; run the script in benchmarks/ that writes it.")
            self.read[file] = read_json(path, dict)
        value = self.read[file]
        for i, key in enumerate(keys):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{path} has no {' / '.join(keys[: i + 1])}, which the card cites; run its script again.")
            value = value[key]
        return value


def card(kind: str, results: Path) -> Card:
    """The card of ``kind``, with numbers from the folder ``results``.

    Raises:
        ValueError: unknown kind, or a number that was not measured.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if kind not in KINDS:
        raise ValueError(f"there is no card {kind!r}; choose from {', '.join(KINDS)}.")
    if kind == "dataset":
        return Card(kind, _example_data_set(), (), {})
    measured = Results(results)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    training = {name: _training(name) for name in CLASS_CONDITIONAL}
    text = environment.get_template(f"{kind}.md").render(measured=measured, training=training, **_versions(kind))
    pictures = {f"{kind}.png": lambda path: draw_gallery(kind, path)} if kind in CLASS_CONDITIONAL else {}
    return Card(kind, text, tuple(results / name for name in measured.read), pictures)


def check_front_matter(text: str, kind: str) -> None:
    """Raises ValueError unless huggingface_hub reads the card's front matter and finds a licence and tags."""
    from huggingface_hub import DatasetCard, ModelCard, SpaceCard

    reader: Any = {"dataset": DatasetCard, "space": SpaceCard}.get(kind, ModelCard)
    data = reader(text).data.to_dict()
    for name in ("license", "tags"):
        if not data.get(name):
            raise ValueError(f"the front matter of the {kind} card has no {name}; add it.")


def write_card(card: Card, path: Path) -> list[Path]:
    """Write ``card`` to ``path`` and its pictures next to it; returns what was written."""
    check_front_matter(card.text, card.kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(card.text)
    written = [path]
    for name, draw in card.pictures.items():
        draw(path.parent / name)
        written.append(path.parent / name)
    return written


def draw_gallery(model: str, path: Path) -> None:
    """Plain and shaped images of an embedded model, from the same noises."""
    from ..plotting import plot_samples
    from ..space.limits import ALL, Drawing
    from ..space.model import load
    from ..space.presets import preset

    loaded, images, marked = load(model), {}, {}
    for name in ("off", "balanced", "touchdown"):
        drawn = loaded.draw(Drawing(ALL, 0, 50, 40, max_count=40), preset(name))
        images[name] = drawn.images
        if drawn.found is not None:
            marked[name] = drawn.found.is_memorized
    title = "The same noise in the same place" + ("; framed: memorized (d1/d2 < 1/3)" if marked else "")
    plot_samples(images, marked or None, title, columns=10).savefig(path, dpi=80)


def _example_data_set() -> str:
    """The card that a small job of the memorizing model gets."""
    from ..generate.job import run_generate
    from ..generate.settings import GenerateSettings
    from ..space.model import load
    from .dataset import data_set_card

    with tempfile.TemporaryDirectory() as folder:
        labels = ",".join(load(CLASS_CONDITIONAL[0]).about.classes[1:])
        run_generate(
            GenerateSettings(
                model=CLASS_CONDITIONAL[0], class_labels=labels, images_per_prompt=4, num_inference_steps=50, output=folder
            )
        )
        return data_set_card(Path(folder))


def _training(name: str) -> dict[str, Any]:
    return json.loads((embedded_model(name) / "training.json").read_text())


def _versions(kind: str) -> dict[str, str]:
    from importlib.metadata import version

    from .. import __version__

    return {"version": __version__} | ({"gradio": version("gradio")} if kind == "space" else {})
