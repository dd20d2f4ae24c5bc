"""The Space without a browser: what a visitor may ask for, what is drawn for them, and the address."""

import multiprocessing
import pickle
import re
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from tiny_pipelines import tiny_flux, tiny_sd3

from diffusers_kts import ClassConditionalFlowPipeline, Gain, KTSFlowMatchScheduler, embedded_model
from diffusers_kts.gain import SCHEDULES
from diffusers_kts.models import NAMES
from diffusers_kts.seeding import sample_generators
from diffusers_kts.space import app, charts, model, views
from diffusers_kts.space.limits import RANGES, Drawing, Refused, Shaping, number, steepest_landing
from diffusers_kts.space.presets import preset
from diffusers_kts.space.served import Served
from diffusers_kts.space.sessions import Sessions

SAFE = st.builds(
    Shaping,
    alpha_0=st.floats(*RANGES["alpha_0"]),
    beta_0=st.floats(0, 0.05),
    tau_split=st.floats(*RANGES["tau_split"]),
    touchdown=st.floats(*RANGES["touchdown"]),
    early_schedule=st.sampled_from(SCHEDULES),
    late_schedule=st.sampled_from(SCHEDULES),
)


@given(SAFE, st.floats(0, 1))
def test_eta_is_the_gain_and_safe_settings_make_a_scheduler(shaping, t):
    settings = shaping.settings()
    touchdown = settings.pop("touchdown")
    assert shaping.eta(t) == pytest.approx(Gain(**settings)(t), abs=1e-12)
    KTSFlowMatchScheduler(**shaping.check().settings())
    assert (touchdown is None) == (shaping.touchdown == 1)


@pytest.mark.parametrize("late", SCHEDULES)
def test_the_unsafe_range_is_that_of_the_gain(late):
    limit = steepest_landing(late)
    assert Gain(0, limit * (1 - 1e-9), late_schedule=late)(1.0) == pytest.approx(0, abs=1e-8)
    with pytest.raises(ValueError, match="velocity would reverse"):
        Gain(0, limit * (1 + 1e-6), late_schedule=late)
    if limit < RANGES["beta_0"][1]:
        shaping = Shaping(beta_0=2 * limit * 0.95, late_schedule=late)
        assert shaping.eta(1.0) == pytest.approx(-0.9, abs=1e-6)  # linear in beta_0
        with pytest.raises(Refused, match="at most 0.0524"):
            shaping.check()


@given(st.one_of(st.none(), st.booleans(), st.text(), st.floats(), st.integers()))
def test_any_value_is_a_number_in_range_or_refused(value):
    try:
        given_back = number("x", value, 0, 10, whole=True)
    except Refused as refusal:
        assert "whole number from 0 to 10" in str(refusal) and len(str(refusal)) < 150
    else:
        assert isinstance(given_back, int) and 0 <= given_back <= 10 and given_back == value


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": -1},
        {"steps": 101},
        {"steps": 2.5},
        {"count": 17},
        {"subject": ""},
        {"subject": "x" * 501},
        {"negative_prompt": "x" * 501},
        {"guidance_scale": 21.0},
        {"guidance_scale": "2"},
    ],
)
def test_drawings_out_of_range_are_refused(settings):
    with pytest.raises(Refused):
        Drawing(**({"subject": "Bag"} | settings))


@pytest.fixture(scope="module")
def memorizing():
    return model.load("memorizing")


@pytest.fixture(scope="module")
def page(memorizing):
    served = Served("memorizing")
    served.load()
    return app.Page(served)


def visitor(session="a", **query):
    return SimpleNamespace(session_hash=session, query_params=query)


CALL = ["Bag", 0, 2, 1, 1.0, "", 0.0, 0.01, 0.6, 1.0, "linear", "exponential"]


def test_the_page_stands_before_torch_is_imported():
    """The first view is the curve; what draws images is loaded behind it."""
    heavy = ("torch", "diffusers", "scipy", "sklearn", "matplotlib")
    script = (
        "import sys; from diffusers_kts.space.app import build; page = build();"
        f"print([name for name in {heavy} if name in sys.modules]);"
        "print([part['props']['value'] for part in page.config['components'] if part['props'].get('elem_id') == 'eta'])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded, eta = run.stdout.splitlines()
    assert loaded == "[]" and "line shaped" in eta and "once the model is loaded" in eta


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_of_a_model_before_it_is_loaded_is_true(name):
    served = Served(name)
    assert served.loaded is None
    known, loaded = served.about, served.load()
    assert served.loaded is loaded is served.load()
    assert known == loaded.about and served.by_class == loaded.by_class


def test_zero_gpu_has_its_model_before_it_serves(monkeypatch):
    monkeypatch.setattr(model.gpu, "spaces", SimpleNamespace())
    served = Served("memorizing")
    assert served.loaded is not None and "Press Generate" in app.Page(served).opening()


def test_a_model_that_cannot_be_loaded_is_tried_again(monkeypatch, caplog):
    page = app.Page(Served("memorizing"))
    monkeypatch.setattr(model, "load", lambda name: 1 / 0)
    assert "could not be loaded. Press Generate to try again" in page.opening()
    assert "ZeroDivisionError" in caplog.text  # the traceback, for whoever runs the page
    with pytest.raises(app.gr.Error, match="could not be loaded"):
        app._told(page.generate)(*CALL, request=visitor(), progress=None)
    assert "kts-chart" in page.eta(*CALL[2:3], *CALL[6:])
    with pytest.raises(Refused, match="no class 'Spoon'"):  # bad input is told at once
        page.generate("Spoon", *CALL[1:], request=visitor(), progress=None)
    monkeypatch.undo()
    assert "kts-pair" in page.generate(*CALL, request=visitor(), progress=None) and "kts-pair" in page.opening()


def test_visitors_who_come_while_it_loads_share_one_load_and_the_first_images_come_first(monkeypatch):
    page, loads, draws, texts = app.Page(Served("memorizing")), [], [], {}
    began, waits, may_end = threading.Event(), threading.Event(), threading.Event()
    real_load, real_draw = model.load, model.SpaceModel.draw

    def load(name):
        loads.append(name)
        began.set()
        assert may_end.wait(60)
        return real_load(name)

    def draw(self, drawing, *args):
        draws.append(drawing.steps)
        return real_draw(self, drawing, *args)

    def progress(*args, desc, **kwargs):
        assert desc == "loading the model"
        waits.set()

    def opens():
        texts["opened"] = page.opening()

    def presses_generate():
        texts["generated"] = page.generate(*CALL, request=visitor("early"), progress=progress)

    monkeypatch.setattr(model, "load", load)
    monkeypatch.setattr(model.SpaceModel, "draw", draw)
    threads = [threading.Thread(target=opens), threading.Thread(target=presses_generate)]
    threads[0].start()
    assert began.wait(60)
    threads[1].start()
    assert waits.wait(60)
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert loads == ["memorizing"] and draws == [50, 50, 2, 2]  # or the first images would replace the visitor's own
    assert all("kts-pair" in texts[what] for what in ("opened", "generated"))


def svg(text):
    return ElementTree.fromstring(re.search(r"<svg.*?</svg>", text, re.DOTALL)[0])


def test_eta_chart_marks_the_steps(page, memorizing):
    shaping = Shaping(0.1, 0.03, 0.6, 0.85)
    text = page.eta(20, *vars(shaping).values())
    times = memorizing.times(20, shaping)
    kinds = [part.get("class") for part in svg(text).iter() if str(part.get("class")).startswith("step")]
    assert len(kinds) == len(times) and kinds.count("step touch") == 1
    assert kinds.count("step launch") == sum(t < 0.6 for t in times)
    assert "kts-warning" not in text and "kts-warning" in page.eta(20, 0, 0.09, 0.6, 1, "linear", "exponential")
    for bad in (["many", *vars(shaping).values()], [20, 9, 0, 0.6, 1, "linear", "linear"]):
        with pytest.raises(app.gr.Error):
            app._told(page.eta)(*bad)


def test_drawing_is_that_of_the_pipeline_and_leaves_the_shared_one_alone(memorizing):
    drawn = memorizing.draw(Drawing("Bag", 3, 4, 2), preset("landing"))
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, beta_0=0.02, alpha_0=0.0)
    images = pipe(["Bag"] * 2, num_inference_steps=4, generator=sample_generators(3, range(2)), output_type="pt").images
    assert torch.equal(drawn.images, images) and torch.equal(drawn.trace.power, pipe.scheduler.kpe.power)
    assert type(memorizing.pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"


def test_drawings_at_the_same_time_do_not_touch_each_other(memorizing):
    jobs = [(Drawing("Bag", 1, 12, 2), preset("landing")), (Drawing("Coat", 2, 7, 3), preset("touchdown"))]
    alone = [memorizing.draw(*job) for job in jobs]
    together, meet = {}, threading.Barrier(2)

    def draw(i):
        meet.wait()
        together[i] = memorizing.draw(*jobs[i])

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert torch.equal(together[i].images, alone[i].images) and torch.equal(together[i].trace.power, alone[i].trace.power)


def test_stop_reaches_all_drawings_of_one_visitor():
    sessions = Sessions()
    with sessions.drawing("a") as first, sessions.drawing("a") as second, sessions.drawing("b") as theirs:
        assert sessions.stop("a") and first.is_set() and second.is_set() and not theirs.is_set()
    assert not sessions.stop("a")
    with sessions.drawing("a") as mine:
        assert not mine.is_set()


def test_stop_ends_a_drawing_and_frees_the_visitor(page, monkeypatch):
    real = page.served.loaded.draw

    def press_stop(drawing, shaping, advance):
        def stop_then_advance():
            page.sessions.stop("a")
            advance()

        return real(drawing, shaping, stop_then_advance)

    page.first()
    monkeypatch.setattr(page.served.loaded, "draw", press_stop)
    call = ["Bag", 0, 50, 1, 1.0, "", 0, 0.01, 0.6, 1, "linear", "exponential"]
    with pytest.raises(app.gr.Error, match="Stopped"):
        app._told(page.generate)(*call, request=visitor(), progress=None)
    monkeypatch.undo()
    assert "kts-pair" in page.generate(*call[:2], 2, *call[3:], request=visitor(), progress=None)


def test_results_say_what_was_drawn(page, memorizing):
    shaping = ["0.05", 0.0]
    with pytest.raises(Refused, match="alpha_0 is '0.05'"):
        page.generate("Bag", 0, 2, 1, 1.0, "", *shaping, 0.6, 1, "linear", "exponential", request=visitor(), progress=None)
    text = page.generate(
        "all classes", 5, 2, 3, 1.0, "", 0.05, 0, 0.6, 1, "linear", "exponential", request=visitor(), progress=None
    )
    assert re.findall(r"<h4>(.*?)</h4>", text) == list(memorizing.about.classes[1:4])
    shaped = memorizing.draw(Drawing("all classes", 5, 2, 3), Shaping(0.05))
    assert f"energy {shaped.trace.per_dim[2]:.3f}" in text and f"d1/d2 {views.ratio(shaped, 2):.2f}" in text
    assert text.count('class="near exact"') == 12 and "KTS 0.05 / 0" in text and len(svg(text)) > 10


def test_sweep_and_population(page):
    settings = [0.0, 0.0, 0.6, 1.0, "linear", "exponential"]
    text = page.sweep(
        "Bag", 0, 2, 1.0, "", "beta_0", 0, 0.05, "touchdown", 0.5, 1, 3, *settings, request=visitor(), progress=None
    )
    assert text.count("<img") == 9 and "0.025" in text
    for bad, words in (
        (["beta_0", 0, 0.05, "beta_0", 0, 0.05, 3], "two different"),
        (["beta_0", 0, 0.09, "touchdown", 0.5, 1, 3], "velocity would reverse"),
        (["beta_0", 0, 0.05, "k", 0.5, 1, 3], "cannot be swept"),
        (["beta_0", 0, 0.05, "touchdown", 0.5, 1, 6], "values is 6"),
        (["beta_0", None, 0.05, "touchdown", 0.5, 1, 3], "beta_0 from is None"),
    ):
        with pytest.raises(Refused, match=words):
            page.sweep("Bag", 0, 2, 1.0, "", *bad, *settings, request=visitor(), progress=None)
    text = page.draw_population("all classes", 0, 1, 1.0, "", *settings, request=visitor(), progress=None)
    points = [part for part in svg(text).iter() if part.get("data-point")]
    assert len(points) == 128 == text.count("data-detail") and all(part.get("aria-label") for part in points)


def test_the_address_sets_what_is_in_range(page, monkeypatch):
    values = page._from_url(visitor(seed="7", touchdown="0.7", alpha_0="0", beta_0="0", subject="Bag"))
    assert values[:4] == ["Bag", 7, page.steps, 4] and values[-1] == "touchdown" and values[9] == 0.7
    untouched = page._from_url(visitor())
    assert len(values) == len(untouched) == 13 and "value" not in str(untouched[0])
    for bad in ({"seed": "x"}, {"beta_0": "5"}, {"subject": "<script>"}, {"steps": "1e9"}):
        warned = []
        monkeypatch.setattr(app.gr, "Warning", warned.append)
        assert [str(v) for v in page._from_url(visitor(**bad))] == [str(v) for v in untouched] and len(warned) == 1


def test_names_are_escaped(memorizing):
    drawn = memorizing.draw(Drawing("Bag", 0, 1, 1), Shaping())
    assert "<script>" not in views.comparison({"<script>": drawn}, memorizing.training, ["<script>"])
    assert "&lt;script" in charts.power_chart({"<script>": drawn.trace})


def test_prompts_are_drawn_in_turn_with_guidance_and_a_negative_prompt():
    emoji = model.load("emoji-memorizing")
    drawn = emoji.draw(Drawing("a koala\n\n a pear ", 3, 2, 3, 2.5, "a tulip"), preset("landing"))
    pipe = DiffusionPipeline.from_pretrained(embedded_model("emoji-memorizing"))
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, beta_0=0.02, alpha_0=0.0)
    images = pipe(
        ["a koala", "a pear", "a koala"], negative_prompt=["a tulip"] * 3, guidance_scale=2.5, num_inference_steps=2,
        generator=sample_generators(3, range(3)), output_type="np",
    ).images  # fmt: skip
    assert torch.equal(drawn.images, torch.from_numpy(images).movedim(-1, -3)) and drawn.found is not None
    plain = emoji.draw(Drawing("a koala", 3, 2, 1), Shaping())  # the guidance of the model: none
    assert torch.equal(plain.images, emoji.draw(Drawing("a koala", 3, 2, 1, 1.0), Shaping()).images)


def test_what_a_model_does_not_take_is_refused(memorizing):
    for more, words in (((1.0, "a tulip"), "no negative prompt"), ((2.0,), "has no guidance")):
        with pytest.raises(Refused, match=words):
            memorizing.draw(Drawing("Bag", 0, 2, 1, *more), Shaping())


@pytest.mark.parametrize("build", [tiny_sd3, tiny_flux])
def test_a_model_that_takes_prompts(build, tmp_path):
    build().save_pretrained(tmp_path / "pipe")
    page = app.Page(Served(str(tmp_path / "pipe")))
    assert "Press Generate" in page.opening() and page.served.loaded is not None and not page.served.by_class
    text = page.generate("a fox", 0, 2, 1, 3.0, "", 0, 0.02, 0.6, 1, "linear", "exponential", request=visitor(), progress=None)
    assert text.count("<img") == 2 and "d1/d2" not in text
    assert page.eta(4, 0, 0.02, 0.6, 1, "linear", "exponential").count('class="step') == 4
    page.blocks()


def _in_a_fork(function):
    """A stand-in for ``spaces.GPU``: the call runs in a forked process, arguments and result are pickled."""

    def call(*args):
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        given = pickle.dumps(args)
        process = context.Process(target=lambda: results.put(pickle.dumps(function(*pickle.loads(given)))))
        process.start()
        result = pickle.loads(results.get())
        process.join()
        return result

    return call


@pytest.fixture
def one_thread():
    """OpenMP's threads do not live on in a fork, where a second one would be waited for in vain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_zero_gpu_gets_its_record_back(memorizing, monkeypatch, one_thread):
    """On ZeroGPU the function that draws runs in a fork: the images and the record come back by value."""
    expected = memorizing.draw(Drawing("Bag", 0, 3, 1), preset("landing"))
    monkeypatch.setattr(model.gpu, "spaces", SimpleNamespace(GPU=lambda duration: _in_a_fork))
    monkeypatch.setattr(model, "draw_on_gpu", model.gpu.on_gpu(model.draw_on_gpu))
    drawn = memorizing.draw(Drawing("Bag", 0, 3, 1), preset("landing"), advance=lambda: 1 / 0)  # no callback crosses
    assert torch.equal(drawn.images, expected.images) and torch.equal(drawn.trace.power, expected.trace.power)
