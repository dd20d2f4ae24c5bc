"""The results of an audit in a model card: a ``model-index`` in its front matter, and a section of its text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..errors import brief
from ..files import write_whole
from .copies import in_words

BEGIN, END = "<!-- written by kts audit -->", "<!-- end of kts audit -->"
DATASET = "training-images"  # dataset type of the results, by which earlier ones are known


def read_card(path: Path) -> ModelCard:
    """The card at ``path``, empty if there is none yet.

    Raises:
        ValueError: it cannot be read, or holds half a section of an earlier audit. OSError: its folder does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist; make that folder first, or give another --card.")
    if not path.exists():
        return ModelCard("---\n{}\n---\n")  # of an empty text, huggingface_hub warns
    try:
        card = ModelCard(path.read_bytes().decode())
    except Exception as error:  # whatever a foreign file makes yaml or huggingface_hub raise
        raise ValueError(f"the card {path} cannot be read ({brief(error)}); fix it, or give another --card.") from error
    if not (card.text.count(BEGIN) == card.text.count(END) <= 1 and card.text.find(BEGIN) <= card.text.find(END)):
        raise ValueError(f"the card {path} holds {BEGIN} without {END} or twice; remove them, the section is added again.")
    return card


def write_card(path: Path, report: Mapping[str, Any]) -> None:
    """Write the results of ``report.json`` into the card, in place of those of an earlier audit; the rest stays.

    Raises:
        ValueError, OSError: as `read_card`.
    """
    card = read_card(path)
    data: Any = card.data
    data.eval_results = [r for r in data.eval_results or [] if r.dataset_type != DATASET] + _results(report)
    data.model_name = data.model_name or Path(report["model"]).name
    before, found, rest = card.text.partition(BEGIN)
    after = rest.partition(END)[2] if found else ""
    card.text = f"{before.rstrip()}\n\n{BEGIN}\n{_section(report)}\n{END}\n{after.lstrip()}".lstrip()
    write_whole(path, str(card).encode())


def _results(report: Mapping[str, Any]) -> list[EvalResult]:
    found, digests = reported(report), report["audit"]["sha256"]
    f = found["f_mem"]
    common = {
        "task_type": report["task"],
        "dataset_type": DATASET,
        "dataset_name": f"training images {digests['training_images'][:12]}",
    }
    args = {"low": f["low"], "high": f["high"], "samples": f["n"], "threshold": report["audit"]["settings"]["threshold"]}
    return [
        EvalResult(**common, metric_type="f_mem", metric_name="F_mem", metric_value=f["fraction"], metric_args=args),
        EvalResult(
            **common,
            metric_type="frechet_distance",
            metric_name=f"Frechet distance ({report['frechet_space']})",
            metric_value=found["frechet_distance"],
        ),
    ]


def reported(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Whose results go on the card: plain sampling's; of checkpoints the last below the limit, else the last."""
    if "samplers" in report:
        return report["samplers"]["euler"]
    return report["checkpoints"][report["last_below"] or [*report["checkpoints"]][-1]]


def _section(report: Mapping[str, Any]) -> str:
    audit, found = report["audit"], reported(report)
    settings, training = audit["settings"], report["training_images"]
    versions = ", ".join(f"{name} {version}" for name, version in audit["versions"].items())
    digests = audit["sha256"] | audit.get("checkpoints", {})
    lines = [
        "## Memorization",
        *report["verdict"],
        f"F_mem is the share of samples with d1/d2 < {settings['threshold']:.3g}, distances in {report['neighbor_space']} to "
        f"the two nearest of {training['distinct']} distinct training images ({training['count']} in all). Exact 95 % "
        f"intervals. Figures of this card are those of {found['heading']}.",
        _published(found["copies"]["pixels"]),
        f"Measured by `kts audit`: {settings['num_samples']} samples, {settings['num_inference_steps']} steps, seed "
        f"{settings['seed']}, on {report['device']}; {versions}.",
        "\n".join(f"* sha256 of {name}: `{digest}`" for name, digest in digests.items()),
    ]
    return "\n\n".join(lines)


def _published(copies: Mapping[str, Any]) -> str:
    """Published measures, with those of real images, where there are any, next to them."""
    said = []
    for name, measured in (("AuthPct", copies["authpct"]), ("Calibrated L2 below 1", copies["calibrated_l2"])):
        real = f", of held-out real images {in_words(measured['real'])}" if measured["real"] else ""
        said.append(f"{name}, in pixels: {in_words(measured['samples'])}{real}.")
    return " ".join(said)
