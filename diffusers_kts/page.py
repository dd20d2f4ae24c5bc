"""Reports: one HTML file that opens offline, with its figures inside."""

import base64
import io
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

STYLE = Path(__file__).with_suffix(".css")


def render(template: Path, **values: Any) -> str:
    """The page of a template, which finds the style of all reports under ``style``."""
    page = Environment(autoescape=True, trim_blocks=True).from_string(template.read_text(encoding="utf-8"))
    return page.render(style=Markup(STYLE.read_text(encoding="utf-8")), **values)


def svg(figure: Figure) -> Markup:
    """A drawing, the same bytes in every run."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "diffusers-kts"}):  # else every run writes other identifiers
        figure.savefig(text, format="svg", metadata={"Date": None})
    return Markup(text.getvalue()[text.getvalue().index("<svg") :])


def png(figure: Figure, alt: str) -> Markup:
    """A picture."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return Markup(f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}">')
