"""The page: what a visitor sees, and what happens when they press a button."""

from . import model as models  # noqa: I001 (``spaces`` goes before torch and gradio)

import atexit
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

# before gradio is imported: no telemetry
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from ..gain import SCHEDULES
from ..presets import PRESETS
from . import views
from .charts import gain_chart
from .gpu import spaces
from .limits import (
    MAX_IMAGES,
    MAX_PROMPT,
    MAX_SEED,
    MAX_STEPS,
    MAX_SWEEP,
    POPULATION,
    RANGES,
    Drawing,
    Refused,
    Shaping,
    number,
)
from .presets import SHAPING, preset
from .sessions import Sessions
from .theme import CHOOSE, CSS, THEME

CUSTOM = "custom"
DEFAULT_PRESET = "balanced"
STEPS_OF_SLIDERS = {"alpha_0": 0.005, "beta_0": 0.001, "tau_split": 0.05, "touchdown": 0.05}
SWEPT = ("alpha_0", "beta_0", "tau_split", "touchdown")
PROMPT = "a red fox in fresh snow, morning light"
PLAIN = "plain Euler"
ABOUT = """
### Plain and shaped

A flow-matching model turns noise into an image. It starts at flow time t = 0 with pure noise and follows a velocity, in steps,
to t = 1. **Plain** images take each step as the model says. **Shaped** images multiply each step by a gain **eta(t)**: above 1
early (the *launch*), below 1 late (the *landing*). The model is told the true time; only the distance moved changes.
Both images of a pair start from the same noise.

* `alpha_0` is the strength of the launch, `beta_0` of the landing, `tau_split` the time where one gives way to the other.
* With a large `beta_0` the gain falls below 0: the image would run backwards. The page warns, and the server refuses.
* What a landing takes away stays in the image as noise.
* **Touchdown** stops at a time and goes to the model's estimate of the image in one step. It leaves no noise, and it calls the
  network less often.

### Energy

The kinetic path energy is `E = ½ ∫ ‖v‖² dt`, half the squared speed added up along the way, here divided by the number of
pixel values. *Early* is the part before `tau_split`, *late* the rest.

### Memorised

For every image the page looks for the two nearest training images, at distances d1 and d2. If d1/d2 is below 1/3 the image is
far closer to one training image than to any other: it counts as **memorised** and has an orange frame. The default model was
trained on few images for long, on purpose, so that it memorises a lot and there is something to see. On a model that takes
prompts, the training images are not known, and the page shows energies only.

Whether shaping helps is a property of the model: measure it on yours. The method is that of *A Kinetic Energy Perspective of
Flow Matching* ([arXiv 2602.07928](https://arxiv.org/abs/2602.07928)); touchdown is an addition of this project.
"""


def build(name: str = "memorising") -> gr.Blocks:
    """The app on a model; see `diffusers_kts.space.model.SpaceModel` for ``name``."""
    _own_temporary_folder()
    model = models.load(name)
    return Page(model).blocks()


def launch_options() -> dict[str, Any]:
    """Arguments of ``Blocks.launch``: nothing is kept, nothing is uploaded, errors are shown to the visitor."""
    options: dict[str, Any] = {"theme": THEME, "css": CSS, "show_error": True, "ssr_mode": False, "run_history": False}
    return options | {"max_file_size": 1024, "footer_links": ["api", "settings"]}


def _own_temporary_folder() -> None:
    folder = tempfile.TemporaryDirectory(prefix="kts-space-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    atexit.register(folder.cleanup)


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the visitor did wrong becomes a message on the page, and an error for the caller of the API."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Refused as refusal:
            raise gr.Error(str(refusal), print_exception=False) from None
        except models.Stopped:
            raise gr.Error("Stopped.", duration=3, print_exception=False, title="Stopped") from None

    return wrapped


class Page:
    """Builds the page; holds no state of any visitor but who is drawing."""

    def __init__(self, model: models.SpaceModel) -> None:
        self.model = model
        self.sessions = Sessions()
        self.max_images = MAX_IMAGES if model.by_class else 4
        self.population = POPULATION if model.by_class else 8
        self.steps = 50 if model.by_class else 28

    # what the buttons do

    def eta(self, steps: Any, *shaping: Any) -> str:
        chosen = Shaping(*shaping)
        return gain_chart(chosen, self.model.times(number("steps", steps, 1, MAX_STEPS, whole=True), chosen))

    def generate(
        self, subject: Any, seed: Any, steps: Any, count: Any, *shaping: Any, request: gr.Request, progress: gr.Progress
    ) -> str:
        drawing = Drawing(subject, seed, steps, count, max_count=self.max_images)
        results = self._draw_both(drawing, Shaping(*shaping), request, progress)
        return views.comparison(results, self.model.training, self._names(drawing))

    def draw_population(
        self, subject: Any, seed: Any, steps: Any, *shaping: Any, request: gr.Request, progress: gr.Progress
    ) -> str:
        drawing = Drawing(subject, seed, steps, self.population, max_count=self.population)
        results = self._draw_both(drawing, Shaping(*shaping), request, progress)
        return views.population(results, self.model.training, self._names(drawing))

    def sweep(
        self,
        subject: Any,
        seed: Any,
        steps: Any,
        x: Any,
        x_from: Any,
        x_to: Any,
        y: Any,
        y_from: Any,
        y_to: Any,
        values: Any,
        *shaping: Any,
        request: gr.Request,
        progress: gr.Progress,
    ) -> str:
        if x == y:
            raise Refused(f"both settings are {x}; choose two different ones.")
        xs, ys = (self._values(*axis, values) for axis in ((x, x_from, x_to), (y, y_from, y_to)))
        base = vars(Shaping(*shaping))
        drawing = Drawing(subject, seed, steps, 1)
        plans = {
            (row, column): Shaping(**(base | {x: vx, y: vy})).check()
            for row, vy in enumerate(ys)
            for column, vx in enumerate(xs)
        }
        cells = self._draw(drawing, plans, request, progress)
        return views.sweep(x, xs, y, ys, cells)

    def stop(self, request: gr.Request) -> None:
        if not self.sessions.stop(_session(request)):
            gr.Info("Nothing of yours is being drawn.", duration=3)

    def _values(self, name: Any, low: Any, high: Any, count: Any) -> list[float]:
        if name not in SWEPT:
            raise Refused(f"{name!r:.60} cannot be swept; choose one of {', '.join(SWEPT)}.")
        count = number("values", count, 2, MAX_SWEEP, whole=True)
        low, high = (number(f"{name} {end}", value, *RANGES[name]) for end, value in (("from", low), ("to", high)))
        return [low + (high - low) * i / (count - 1) for i in range(count)]

    def _draw_both(
        self, drawing: Drawing, shaping: Shaping, request: gr.Request | None, progress: Any
    ) -> dict[str, models.Drawn]:
        # tau_split also divides early from late energy, so both have the same
        plans = {PLAIN: Shaping(tau_split=shaping.tau_split), _heading(shaping): shaping.check()}
        return self._draw(drawing, plans, request, progress)

    def _draw(
        self, drawing: Drawing, plans: Mapping[Any, Shaping], request: gr.Request | None, progress: Any
    ) -> dict[Any, Any]:
        self.model.check(drawing)
        total, done = len(plans) * drawing.steps, 0
        with self.sessions.drawing(_session(request)) as stopped:

            def advance() -> None:
                nonlocal done
                done += 1
                if stopped.is_set():
                    raise models.Stopped
                if progress is not None and done % 5 == 0:
                    progress((done, total), unit="steps", desc="drawing")

            return {name: self.model.draw(drawing, shaping, advance) for name, shaping in plans.items()}

    def _names(self, drawing: Drawing) -> list[str]:
        if not self.model.by_class or drawing.subject != models.ALL:
            return [drawing.subject] * drawing.count
        classes = self.model.subjects[1:]
        return [classes[i % len(classes)] for i in range(drawing.count)]

    def first(self) -> str:
        """What is on the page before anything is pressed; nothing on ZeroGPU, where the GPU comes with a press."""
        if spaces is not None or not self.model.by_class:
            return '<p class="kts-empty">Press Generate to see plain and shaped images of the same noise.</p>'
        drawing = Drawing(self.model.subjects[0], 0, self.steps, 4)
        results = self._draw_both(drawing, preset(DEFAULT_PRESET), None, None)
        return views.comparison(results, self.model.training, self._names(drawing))

    # what it looks like

    def blocks(self) -> gr.Blocks:
        with gr.Blocks(title="KTS: shape the way a flow model moves", delete_cache=(600, 600)) as page:
            gr.Markdown(
                "# Shape the way a flow model moves\n"
                "Plain and shaped images from the same noise, the energy each of them took, and the training images they come "
                "close to. Drag a slider, then press Generate."
            )
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    controls = self._controls()
                with gr.Column(scale=3, min_width=320):
                    names = [name for name in PRESETS if name != "off"]
                    self.preset = gr.Radio([*names, CUSTOM], value=DEFAULT_PRESET, label="Preset", elem_id="preset")
                    eta = gr.HTML(
                        self.eta(self.steps, *vars(preset(DEFAULT_PRESET)).values()), elem_id="eta", label="eta", padding=False
                    )
                    with gr.Row():
                        go = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                        halt = gr.Button("Stop", variant="stop", elem_id="stop", scale=1, min_width=90)
                    self._examples_of(list(controls.values()))
            with gr.Tabs():
                with gr.Tab("Compare", id="compare"):
                    compared = gr.HTML(self.first(), elem_id="compared", min_height=260)
                with gr.Tab("Sweep", id="sweep"):
                    sweep, swept, axes = self._sweep_tab()
                with gr.Tab("Population", id="population"):
                    gr.Markdown(
                        f"{self.population} images with the settings above, plain and shaped: the energy of each against "
                        + ("d1/d2." if self.model.training is not None else "its late share.")
                    )
                    many = gr.Button(f"Draw {self.population}", variant="primary", elem_id="draw-population")
                    crowd = gr.HTML("", elem_id="crowd", js_on_load=CHOOSE)
                with gr.Tab("What am I looking at?", id="about"):
                    gr.Markdown(ABOUT)
            self._events(page, controls, eta, compared, go, halt, sweep, swept, axes, many, crowd)
        return page

    def _controls(self) -> dict[str, Any]:
        start = preset(DEFAULT_PRESET)
        controls: dict[str, Any] = {}
        with gr.Group():
            if self.model.by_class:
                subjects = self.model.subjects
                controls["subject"] = gr.Dropdown(subjects, value=subjects[0], label="Class", elem_id="subject")
            else:
                controls["subject"] = gr.Textbox(PROMPT, label="Prompt", max_length=MAX_PROMPT, lines=2, elem_id="subject")
            with gr.Row():
                controls["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=90)
                controls["steps"] = gr.Slider(1, MAX_STEPS, self.steps, step=1, label="Steps", min_width=120, elem_id="steps")
                controls["count"] = gr.Slider(
                    1, self.max_images, min(4, self.max_images), step=1, label="Images", min_width=120
                )
        with gr.Accordion("Shape by hand", open=True):
            with gr.Row():
                for name in ("alpha_0", "beta_0", "tau_split", "touchdown"):
                    low, high = RANGES[name]
                    label = {"alpha_0": "alpha_0 (launch)", "beta_0": "beta_0 (landing)"}.get(name, name)
                    label += " (1 is none)" if name == "touchdown" else ""
                    controls[name] = gr.Slider(
                        low, high, getattr(start, name), step=STEPS_OF_SLIDERS[name], label=label, elem_id=name, min_width=150
                    )
            with gr.Row():
                for name, label in (("early_schedule", "Launch shape"), ("late_schedule", "Landing shape")):
                    controls[name] = gr.Dropdown(
                        list(SCHEDULES), value=getattr(start, name), label=label, elem_id=name, min_width=140
                    )
        return controls

    def _sweep_tab(self) -> tuple[Any, Any, list[Any]]:
        gr.Markdown("One noise, a grid over two settings; the other settings are those above.")
        axes: list[Any] = []
        with gr.Row():
            for direction, name, low, high in (("Across", "beta_0", 0.0, 0.05), ("Down", "touchdown", 0.5, 1.0)):
                with gr.Group():
                    axes.append(gr.Dropdown(list(SWEPT), value=name, label=direction, min_width=120))
                    with gr.Row():
                        axes.append(gr.Number(low, label="from", min_width=70))
                        axes.append(gr.Number(high, label="to", min_width=70))
            axes.append(gr.Slider(2, MAX_SWEEP, 4, step=1, label="Values of each", min_width=140))
        sweep = gr.Button("Sweep", variant="primary", elem_id="draw-sweep")
        return sweep, gr.HTML("", elem_id="swept"), axes

    def _events(
        self,
        page: gr.Blocks,
        controls: dict[str, Any],
        eta: Any,
        compared: Any,
        go: Any,
        halt: Any,
        sweep: Any,
        swept: Any,
        axes: list[Any],
        many: Any,
        crowd: Any,
    ) -> None:
        shaping = [controls[name] for name in SHAPING]
        every = list(controls.values())
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        draws: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": 2 if self.model.by_class else 1}

        gr.on(
            [control.change for control in [controls["steps"], *shaping]],
            _told(self.eta),
            [controls["steps"], *shaping],
            eta,
            trigger_mode="always_last",
            **quiet,
        )
        self.preset.input(_preset_values, self.preset, shaping, **quiet)
        gr.on([control.input for control in shaping], None, None, self.preset, js=f"() => {CUSTOM!r}")
        gr.on([control.change for control in every], None, every, None, js=_to_url(list(controls)))
        page.load(self._from_url, None, [*every, self.preset], **quiet)

        def generate(subject, seed, steps, count, alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule,
                     request: gr.Request, progress=gr.Progress()):  # fmt: skip  # noqa: B008 (gradio's convention)
            shaped = (alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule)
            return self.generate(subject, seed, steps, count, *shaped, request=request, progress=progress)

        def draw_population(subject, seed, steps, alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule,
                            request: gr.Request, progress=gr.Progress()):  # fmt: skip  # noqa: B008
            shaped = (alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule)
            return self.draw_population(subject, seed, steps, *shaped, request=request, progress=progress)

        def draw_sweep(subject, seed, steps, x, x_from, x_to, y, y_from, y_to, values,
                       alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule,
                       request: gr.Request, progress=gr.Progress()):  # fmt: skip  # noqa: B008
            shaped = (alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule)
            axes = (x, x_from, x_to, y, y_from, y_to, values)
            return self.sweep(subject, seed, steps, *axes, *shaped, request=request, progress=progress)

        what = [controls["subject"], controls["seed"], controls["steps"]]
        go.click(_told(generate), every, compared, api_name="generate", trigger_mode="once", **draws)
        many.click(_told(draw_population), [*what, *shaping], crowd, api_name="population", trigger_mode="once", **draws)
        sweep.click(_told(draw_sweep), [*what, *axes, *shaping], swept, api_name="sweep", trigger_mode="once", **draws)
        halt.click(self.stop, None, None, **quiet)

    def _examples_of(self, every: list[Any]) -> None:
        subjects, images = self.model.subjects, min(8, self.max_images)
        if subjects:
            shown = [(subjects[0], 0, "anti_memorization"), (subjects[-1], 3, "landing"), (subjects[1], 5, "quality")]
        else:
            shown = [(PROMPT, 0, "quality"), ("a glass of water on a stone table", 1, "balanced")]
        rows = [[subject, seed, self.steps, images, *vars(preset(name)).values()] for subject, seed, name in shown]
        labels = [f"{subject}: {_heading(preset(name))}" for subject, _, name in shown]
        gr.Examples(rows, every, label="Try", example_labels=labels, elem_id="examples")

    def _from_url(self, request: gr.Request) -> list[Any]:
        """Settings in the address, once they are in range; what is not there, or not usable, stays as it is."""
        given = dict(request.query_params) if request else {}
        shared = {name: _read(name, given[name]) for name in ("subject", "seed", "steps", "count", *SHAPING) if name in given}
        try:
            start: dict[str, Any] = {"subject": self.model.subjects[0] if self.model.by_class else PROMPT, "steps": self.steps}
            numbers = {name: shared[name] for name in ("subject", "seed", "steps", "count") if name in shared}
            drawing = Drawing(**(start | numbers), max_count=self.max_images)
            self.model.check(drawing)
            shaping = Shaping(**(vars(preset(DEFAULT_PRESET)) | {n: v for n, v in shared.items() if n in SHAPING}))
        except Refused as refusal:
            gr.Warning(f"The address is not used: {refusal}")
            shared = {}
        if not shared:
            return [gr.skip()] * (len(SHAPING) + 5)
        named = [name for name in PRESETS if preset(name) == shaping and name != "off"]
        values = [drawing.subject, drawing.seed, drawing.steps, drawing.count]
        return [*values, *vars(shaping).values(), named[0] if named else CUSTOM]


def _preset_values(name: str) -> list[Any]:
    if name not in PRESETS:
        return [gr.skip()] * len(SHAPING)
    return list(vars(preset(name)).values())


def _heading(shaping: Shaping) -> str:
    parts = []
    if shaping.alpha_0 or shaping.beta_0:
        parts.append(f"KTS {shaping.alpha_0:g} / {shaping.beta_0:g}")
    if shaping.touchdown < 1:
        parts.append(f"touchdown {shaping.touchdown:g}")
    return ", ".join(parts) or "shaping off"


def _session(request: gr.Request | None) -> str:
    return (request and request.session_hash) or "nobody"


def _read(name: str, value: str) -> Any:
    if name in ("subject", "early_schedule", "late_schedule"):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _to_url(names: list[str]) -> str:
    """Keep the settings in the address; inside a Space the page around the frame holds it."""
    return f"""(...values) => {{
  const names = {names!r}, query = new URLSearchParams(window.location.search);
  names.forEach((name, i) => query.set(name, values[i]));
  window.history.replaceState(null, '', '?' + query);
  if (window.parent !== window) window.parent.postMessage({{queryString: query.toString()}}, 'https://huggingface.co');
}}"""
