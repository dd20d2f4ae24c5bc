"""The page: what a visitor sees, and what happens when they press a button."""

from . import gpu  # noqa: I001 (``spaces`` goes before torch and gradio)

import atexit
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

# before gradio is imported: no telemetry
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import anyio.to_thread
import gradio as gr

from ..gain import SCHEDULES
from ..models import NAMES, SHOWN_FIRST
from ..presets import PRESETS
from . import views
from .charts import gain_chart
from .limits import (
    ALL,
    MAX_GUIDANCE,
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
from .served import Served, Unavailable
from .sessions import Sessions, Stopped
from .theme import CHOOSE, CSS, FOLD, THEME

if TYPE_CHECKING:
    from .model import Drawn

CUSTOM = "custom"
DEFAULT_PRESET = "balanced"
STEPS_OF_SLIDERS = {"alpha_0": 0.005, "beta_0": 0.001, "tau_split": 0.05, "touchdown": 0.05}
MEANINGS = {"alpha_0": "launch", "beta_0": "landing", "tau_split": "land from", "touchdown": "1 is none"}
SWEPT = tuple(MEANINGS)
WHAT = ("subject", "seed", "steps", "count", "guidance_scale", "negative_prompt")  # of a `Drawing`
PROMPTS = ("a red fox in fresh snow, morning light", "a glass of water on a stone table")
PLAIN = "plain Euler"
ALONE = 3.0  # seconds after which a page that nobody has opened loads its model
LOADING = "Loading the model; its first images come in a few seconds. The sliders work already."
ABOUT = """
### Plain and shaped

A flow-matching model turns noise into an image. It starts at flow time t = 0 with pure noise and follows a velocity, in steps,
to t = 1. **Plain** images take each step as the model says. **Shaped** images multiply each step by a gain **eta(t)**: above 1
early (the *launch*), below 1 late (the *landing*). The model gets the true time; only the distance moved changes.
Both images of a pair start from the same noise.

* Guidance 1 is none. Several prompts, a line each, are drawn in turn.
* `alpha_0` is the strength of the launch, `beta_0` of the landing, `tau_split` the time where one gives way to the other.
* With a large `beta_0` the gain falls below 0: the image would run backwards. The page warns, and the server refuses.
* What a landing takes away stays in the image as noise.
* **Touchdown** stops at a time and goes to the model's estimate of the image in one step. It leaves no noise, and it calls the
  network less often.

### Energy

The kinetic path energy is `E = ½ ∫ ‖v‖² dt`, half the squared speed added up along the way, here divided by the number of
pixel values. *Early* is the part before `tau_split`, *late* the rest.

### Memorized

For every image the page looks for the two nearest training images, at distances d1 and d2. If d1/d2 is below 1/3 the image is
far closer to one training image than to any other: it counts as **memorized** and has an orange frame. The default model was
trained on few images for long, on purpose, so that it memorizes a lot and there is something to see. Where the training
images of a model are not known, the page shows energies only.

Whether shaping helps is a property of the model: measure it on yours. The method is that of *A Kinetic Energy Perspective of
Flow Matching* ([arXiv 2602.07928](https://arxiv.org/abs/2602.07928)); touchdown is an addition of this project.
"""


def build(name: str = SHOWN_FIRST) -> gr.Blocks:
    """The app on a model; see `diffusers_kts.space.model.SpaceModel` for ``name``."""
    _own_temporary_folder()
    page = Page(Served(name))
    # not at once: imports would hold up the server while it sends the page to the first visitor, who starts this otherwise
    later = threading.Timer(ALONE, page.opening)
    later.daemon = True
    later.start()
    return page.blocks()


def launch_options() -> dict[str, Any]:
    """Arguments of ``Blocks.launch``: nothing is kept, nothing is uploaded, errors are shown to the visitor."""
    options: dict[str, Any] = {"theme": THEME, "css": CSS, "show_error": True, "ssr_mode": False, "run_history": False}
    # gradio keeps what a page shows, with its pictures, for as many visitors; older ones have it in their browser
    return options | {"max_file_size": 1024, "footer_links": ["api", "settings"], "state_session_capacity": 32}


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
        except Unavailable as failure:  # its traceback is in the log already
            raise gr.Error(str(failure), print_exception=False) from None
        except Stopped:
            raise gr.Error("Stopped.", duration=3, print_exception=False, title="Stopped") from None

    return wrapped


async def _drawn(function: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    """The result of ``function`` in a thread, which ends at the next step once gradio cancels this, as it does for a caller of
    the API. A function that is not a coroutine would draw on, and hold up the next."""
    stopped = threading.Event()
    work = partial(_told(function), *args, stopped=stopped, **kwargs)
    try:
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
    finally:
        stopped.set()


class Page:
    """Builds the page; holds no state of any visitor but who is drawing."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.sessions = Sessions()
        small = served.by_class or served.name in NAMES
        self.at_once = 2 if small else 1
        self.draws_first = small and gpu.spaces is None  # elsewhere it costs more than a visitor waits for
        self.max_images = MAX_IMAGES if small else 4
        self.population = POPULATION if served.by_class else POPULATION // 2 if small else 8
        self.steps = 50 if served.by_class else 28
        suggestions = served.about.suggestions or PROMPTS
        self.subject = ALL if served.by_class else "\n".join(suggestions[:4])
        self._first: str | None = None
        self._first_lock = threading.Lock()

    # what the buttons do

    def eta(self, steps: Any, *shaping: Any) -> str:
        chosen = Shaping(*shaping)
        steps = number("steps", steps, 1, MAX_STEPS, whole=True)
        model = self.served.loaded
        return gain_chart(chosen, model.times(steps, chosen) if model else None)

    def generate(
        self,
        subject: Any,
        seed: Any,
        steps: Any,
        count: Any,
        guidance_scale: Any,
        negative_prompt: Any,
        *shaping: Any,
        request: gr.Request,
        progress: gr.Progress,
        stopped: threading.Event | None = None,
    ) -> str:
        drawing = Drawing(subject, seed, steps, count, guidance_scale, negative_prompt, max_count=self.max_images)
        results = self._draw(drawing, _both(Shaping(*shaping)), request, progress, stopped)
        return views.comparison(results, self.served.training, self._names(drawing))

    def draw_population(
        self,
        subject: Any,
        seed: Any,
        steps: Any,
        guidance_scale: Any,
        negative_prompt: Any,
        *shaping: Any,
        request: gr.Request,
        progress: gr.Progress,
        stopped: threading.Event | None = None,
    ) -> str:
        many = self.population
        drawing = Drawing(subject, seed, steps, many, guidance_scale, negative_prompt, max_count=many)
        results = self._draw(drawing, _both(Shaping(*shaping)), request, progress, stopped)
        return views.population(results, self.served.training, self._names(drawing))

    def sweep(
        self,
        subject: Any,
        seed: Any,
        steps: Any,
        guidance_scale: Any,
        negative_prompt: Any,
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
        stopped: threading.Event | None = None,
    ) -> str:
        if x == y:
            raise Refused(f"both settings are {x}; choose two different ones.")
        xs, ys = (self._values(*axis, values) for axis in ((x, x_from, x_to), (y, y_from, y_to)))
        base = vars(Shaping(*shaping))
        drawing = Drawing(subject, seed, steps, 1, guidance_scale, negative_prompt)
        plans = {
            (row, column): Shaping(**(base | {x: vx, y: vy})).check()
            for row, vy in enumerate(ys)
            for column, vx in enumerate(xs)
        }
        cells = self._draw(drawing, plans, request, progress, stopped)
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

    def _draw(
        self,
        drawing: Drawing,
        plans: Mapping[Any, Shaping],
        request: gr.Request,
        progress: Any,
        stopped: threading.Event | None,
    ) -> dict[Any, "Drawn"]:
        self.served.about.check(drawing)
        total, done = len(plans) * drawing.steps, 0
        with self.sessions.drawing(_session(request), stopped) as stopped:
            if progress is not None and self.served.loaded is None:
                progress(0, desc="loading the model")
            self.first()  # or its images would come after, and in place of, these
            model = self.served.load()

            def advance() -> None:
                nonlocal done
                done += 1
                if stopped.is_set():
                    raise Stopped
                if progress is not None and done % 5 == 0:
                    progress((done, total), unit="steps", desc="drawing")

            return {name: model.draw(drawing, shaping, advance) for name, shaping in plans.items()}

    def _names(self, drawing: Drawing) -> list[str]:
        classes = self.served.about.classes[1:]
        return [classes[i % len(classes)] if name == ALL else name for i, name in enumerate(drawing.subjects)]

    def first(self) -> str:
        """The images that are there before anything is pressed, drawn once for all visitors; none where a press costs more: a
        large model, and ZeroGPU, where the GPU comes with a press.

        Raises:
            Unavailable: the model could not be loaded.
        """
        if not self.draws_first:
            return _note("Press Generate to see plain and shaped images of the same noise.")
        with self._first_lock:
            if self._first is None:
                drawing, model = Drawing(self.subject, 0, self.steps, 4), self.served.load()
                results = {name: model.draw(drawing, shaping) for name, shaping in _both(preset(DEFAULT_PRESET)).items()}
                self._first = views.comparison(results, model.training, self._names(drawing))
            return self._first

    def opening(self) -> str:
        """`first`, or why there is none."""
        try:
            return self.first()
        except Unavailable as failure:
            return _note(str(failure))

    # what it looks like

    def blocks(self) -> gr.Blocks:
        with gr.Blocks(title="KTS: shape the way a flow model moves", delete_cache=(600, 600)) as page:
            gr.Markdown(
                "# Shape the way a flow model moves\n"
                "Plain and shaped images from the same noise, the energy each of them took, and the training images they come "
                "close to."
            )
            with gr.Row(elem_id="top"):
                with gr.Column(scale=2, min_width=300):
                    controls = self._controls()
                with gr.Column(scale=3, min_width=320):
                    names = [name for name in PRESETS if name != "off"]
                    self.preset = gr.Radio([*names, CUSTOM], value=DEFAULT_PRESET, label="Preset", elem_id="preset")
                    eta = gr.HTML(
                        self.eta(self.steps, *vars(preset(DEFAULT_PRESET)).values()), elem_id="eta", label="eta", padding=False
                    )
                    with gr.Row(elem_id="go"):
                        go = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                        halt = gr.Button("Stop", variant="stop", elem_id="stop", scale=1, min_width=90)
                    self._examples_of(list(controls.values()))
            with gr.Tabs():
                with gr.Tab("Compare", id="compare"):
                    opening = self.opening() if self.served.loaded else _note(LOADING)
                    compared = gr.HTML(opening, elem_id="compared", min_height=260)
                with gr.Tab("Sweep", id="sweep"):
                    sweep, swept, axes = self._sweep_tab()
                with gr.Tab("Population", id="population"):
                    gr.Markdown(
                        f"{self.population} images with the settings above, plain and shaped: the energy of each against "
                        + ("d1/d2." if self.served.about.knows_training else "its late share.")
                    )
                    many = gr.Button(f"Draw {self.population}", variant="primary", elem_id="draw-population")
                    crowd = gr.HTML("", elem_id="crowd", js_on_load=CHOOSE)
                with gr.Tab("What am I looking at?", id="about"):
                    gr.Markdown(ABOUT)
            self._events(page, controls, eta, compared, go, halt, sweep, swept, axes, many, crowd)
        return page

    def _controls(self) -> dict[str, Any]:
        start, about = preset(DEFAULT_PRESET), self.served.about
        controls: dict[str, Any] = {}
        with gr.Group(elem_id="what"):
            with gr.Row():
                if self.served.by_class:
                    controls["subject"] = gr.Dropdown(
                        list(about.classes), value=ALL, label="Class", elem_id="subject", min_width=150, scale=2
                    )
                else:
                    controls["subject"] = gr.Textbox(
                        self.subject, label="Prompts, a line each", max_length=MAX_PROMPT, lines=2,
                        max_lines=4, elem_id="subject", min_width=200, scale=2,
                    )  # fmt: skip
                controls["seed"] = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=90, elem_id="seed"
                )
            with gr.Row():
                controls["steps"] = gr.Slider(1, MAX_STEPS, self.steps, step=1, label="Steps", min_width=150, elem_id="steps")
                controls["count"] = gr.Slider(
                    1, self.max_images, min(4, self.max_images), step=1, label="Images", min_width=150
                )
            scale = about.guidance_scale
            with gr.Row(visible=scale is not None or about.takes_negative_prompt):
                controls["guidance_scale"] = gr.Slider(
                    0, MAX_GUIDANCE, 1.0 if scale is None else scale, step=0.5, label="Guidance", min_width=150,
                    elem_id="guidance_scale", visible=scale is not None,
                )  # fmt: skip
                controls["negative_prompt"] = gr.Textbox(
                    "", label="Negative prompt", max_length=MAX_PROMPT, elem_id="negative_prompt", min_width=150,
                    visible=about.takes_negative_prompt,
                )  # fmt: skip
        with gr.Accordion("Shape by hand", open=True, elem_id="by-hand"):
            with gr.Row():
                for name in SWEPT:
                    low, high = RANGES[name]
                    label, step = f"{name} ({MEANINGS[name]})", STEPS_OF_SLIDERS[name]
                    controls[name] = gr.Slider(
                        low, high, getattr(start, name), step=step, label=label, elem_id=name, min_width=150
                    )
            with gr.Row():
                for name, label in (("early_schedule", "Launch shape"), ("late_schedule", "Landing shape")):
                    controls[name] = gr.Dropdown(
                        list(SCHEDULES), value=getattr(start, name), label=label, elem_id=name, min_width=160
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
        draws: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": self.at_once}

        curve = (_told(self.eta), [controls["steps"], *shaping], eta)
        gr.on([control.change for control in curve[1]], *curve, trigger_mode="always_last", **quiet)
        self.preset.input(_preset_values, self.preset, shaping, **quiet)
        gr.on([control.input for control in shaping], None, None, self.preset, js=f"() => {CUSTOM!r}")
        gr.on([control.change for control in every], None, every, None, js=_to_url(list(controls)))
        page.load(None, None, None, js=FOLD)
        opened = page.load(self._from_url, None, [*every, self.preset], **quiet)
        opened = opened.then(
            self.opening, None, compared, show_progress="hidden", api_visibility="private", concurrency_limit=None
        )

        async def generate(subject, seed, steps, count, guidance_scale, negative_prompt,
                     alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule,
                     request: gr.Request, progress=gr.Progress()):  # fmt: skip  # noqa: B008 (gradio's convention)
            what = (subject, seed, steps, count, guidance_scale, negative_prompt)
            shaped = (alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule)
            return await _drawn(self.generate, *what, *shaped, request=request, progress=progress)

        async def draw_population(subject, seed, steps, guidance_scale, negative_prompt,
                            alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule,
                            request: gr.Request, progress=gr.Progress()):  # fmt: skip  # noqa: B008
            what = (subject, seed, steps, guidance_scale, negative_prompt)
            shaped = (alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule)
            return await _drawn(self.draw_population, *what, *shaped, request=request, progress=progress)

        async def draw_sweep(subject, seed, steps, guidance_scale, negative_prompt, x, x_from, x_to, y, y_from, y_to, values,
                       alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule,
                       request: gr.Request, progress=gr.Progress()):  # fmt: skip  # noqa: B008
            what = (subject, seed, steps, guidance_scale, negative_prompt)
            axes = (x, x_from, x_to, y, y_from, y_to, values)
            shaped = (alpha_0, beta_0, tau_split, touchdown, early_schedule, late_schedule)
            return await _drawn(self.sweep, *what, *axes, *shaped, request=request, progress=progress)

        what = [controls[name] for name in ("subject", "seed", "steps", "guidance_scale", "negative_prompt")]
        drawn = go.click(generate, every, compared, api_name="generate", trigger_mode="once", **draws)
        for event in (opened, drawn):
            event.success(*curve, **quiet)  # the model is loaded now, and with it the steps are known
        many.click(draw_population, [*what, *shaping], crowd, api_name="population", trigger_mode="once", **draws)
        sweep.click(draw_sweep, [*what, *axes, *shaping], swept, api_name="sweep", trigger_mode="once", **draws)
        halt.click(self.stop, None, None, **(quiet | {"api_visibility": "public", "api_name": "stop"}))

    def _examples_of(self, every: list[Any]) -> None:
        about, images = self.served.about, min(8, self.max_images)
        names = ("touchdown", "landing", "quality", "balanced")
        some = (
            (about.classes[0], about.classes[-1], *about.classes[1:3]) if about.classes else about.suggestions[:6] or PROMPTS
        )
        shown = [(subject, seed, names[seed % len(names)]) for seed, subject in enumerate(some)]
        guidance = [1.0 if about.guidance_scale is None else about.guidance_scale, ""]
        rows = [[text, seed, self.steps, images, *guidance, *vars(preset(name)).values()] for text, seed, name in shown]
        labels = [f"{subject}: {_heading(preset(name))}" for subject, _, name in shown]
        gr.Examples(rows, every, label="Try", example_labels=labels, elem_id="examples")

    def _from_url(self, request: gr.Request) -> list[Any]:
        """Settings in the address, once they are in range; what is not there, or not usable, stays as it is."""
        given = dict(request.query_params) if request else {}
        shared = {name: _read(name, given[name]) for name in (*WHAT, *SHAPING) if name in given}
        try:
            start: dict[str, Any] = {"subject": self.subject, "steps": self.steps}
            start |= {"guidance_scale": self.served.about.guidance_scale or 1.0}
            drawing = Drawing(**start | {name: shared[name] for name in WHAT if name in shared}, max_count=self.max_images)
            self.served.about.check(drawing)
            shaping = Shaping(**(vars(preset(DEFAULT_PRESET)) | {n: v for n, v in shared.items() if n in SHAPING}))
        except Refused as refusal:
            gr.Warning(f"The address is not used: {refusal}")
            shared = {}
        if not shared:
            return [gr.skip()] * (len(WHAT) + len(SHAPING) + 1)
        named = [name for name in PRESETS if preset(name) == shaping and name != "off"]
        values = [getattr(drawing, name) for name in WHAT]
        return [*values, *vars(shaping).values(), named[0] if named else CUSTOM]


def _preset_values(name: str) -> list[Any]:
    if name not in PRESETS:
        return [gr.skip()] * len(SHAPING)
    return list(vars(preset(name)).values())


def _note(sentence: str) -> str:
    return f'<p class="kts-empty">{sentence}</p>'


def _both(shaping: Shaping) -> dict[str, Shaping]:
    # tau_split also divides early from late energy, so both have the same
    return {PLAIN: Shaping(tau_split=shaping.tau_split), _heading(shaping): shaping.check()}


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
    if name in ("subject", "negative_prompt", "early_schedule", "late_schedule"):
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
