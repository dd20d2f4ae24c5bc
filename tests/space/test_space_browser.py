"""The Space as visitors meet it: ``kts space`` in a process of its own, Debian's chromium driven by Playwright.

Without chromium these tests are skipped, visibly; with ``KTS_BROWSER_TESTS=required``, which CI sets, they fail instead.
Screenshots go to the git-ignored ``screenshots/``.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import gradio_client
import pytest

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None and os.environ.get("KTS_BROWSER_TESTS") != "required":
    pytest.skip("chromium is not installed (apt-get install chromium)", allow_module_level=True)

sync_api = pytest.importorskip("playwright.sync_api") if CHROMIUM is None else __import__("playwright.sync_api").sync_api
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SCREENSHOTS = Path(__file__).parents[2] / "screenshots"
pytestmark = pytest.mark.browser
PATIENCE = 120_000  # ms, for a machine that has other work
FEW = "?steps=6&count=2"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a running ``kts space``, its folder, and the folder for temporary files."""
    folder, temporary = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("temporary")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "diffusers_kts", "space", "--model", "memorizing", "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    address = f"http://127.0.0.1:{port}/"
    for _ in range(1500):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
    else:
        process.kill()
        pytest.fail("kts space did not answer in five minutes")
    yield address, folder, temporary
    process.terminate()
    process.wait(60)
    process.stderr.close()
    assert not list(folder.iterdir())  # nothing was written where it was started
    assert not list(temporary.glob("kts-space-*"))  # and the temporary folder is gone


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "chromium is missing and KTS_BROWSER_TESTS=required; apt-get install chromium"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser):
    """Open the page; asserts that nothing outside it was asked for and that no script failed."""
    contexts, foreign, failed = [], [], []

    def open_page(query=FEW, wait=True, **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda r: None if r.url.startswith((server[0], "data:", "blob:")) else foreign.append(r.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(server[0] + query)
        if not wait:
            return page
        page.wait_for_selector("#compared img")
        steps = re.search(r"steps=(\d+)", query)[1]  # the address has arrived at the sliders, and these at the chart
        page.wait_for_function("n => document.querySelector('#steps input[type=number]').value === n", arg=steps)
        if "touchdown" not in query:
            title = "words => document.querySelector('#eta svg title').textContent.includes(words)"
            page.wait_for_function(title, arg=f": {steps} network calls")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not foreign and not failed


def slide(page, name, value):
    """As a hand on the slider: moves it, and lets go."""
    slider = page.locator(f"#{name} input[type=range]")
    slider.evaluate(
        "(e, v) => { Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(e, v);"
        " e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('pointerup', {bubbles: true})); }",
        str(value),
    )


def shoot(page, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def drawn(page, old):
    """Sources of the pictures, once they are others than ``old``."""
    page.wait_for_function(
        "old => { const e = document.querySelector('#compared .kts-pair img.drawn'); return e && e.src !== old }", arg=old
    )
    return [image.get_attribute("src") for image in page.locator("#compared img.drawn").all()]


def test_generate_may_be_pressed_at_once(visit):
    """By the first visitor, too, whose model is not loaded yet."""
    page = visit("?steps=6&count=2&subject=Bag", wait=False)
    page.wait_for_selector("#eta .line")
    shoot(page, "first-view")
    page.wait_for_function("document.querySelector('#steps input[type=number]').value === '6'")
    page.click("#generate")
    page.wait_for_selector("#compared h4:text('Bag')")
    assert page.locator("#compared h4").all_inner_texts() == ["Bag", "Bag"]  # and not the four that the page opens with
    page.wait_for_function("document.querySelector('#eta svg title').textContent.includes(': 6 network calls')")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")
def test_a_load_that_failed_is_told_and_tried_again(browser, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    from diffusers_kts.space import app, model, served

    monkeypatch.setattr(model, "load", lambda name: 1 / 0)
    blocks = app.Page(served.Served("memorizing")).blocks()
    _, address, _ = blocks.queue().launch(prevent_thread_lock=True, quiet=True, **app.launch_options())
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    try:
        page.goto(f"{address}?steps=3&count=1")
        page.wait_for_selector("#compared >> text=could not be loaded")
        page.click("#generate")
        page.wait_for_selector(".toast-body >> text=could not be loaded")
        shoot(page, "not-loaded")
        monkeypatch.undo()
        page.click("#generate")
        page.wait_for_selector("#compared img.drawn")
        page.wait_for_selector("#eta .step")
    finally:
        page.close()
        blocks.close()


def test_sliders_draw_eta_and_generate_draws_both_images(visit):
    page = visit()
    before = page.locator("#eta .line").get_attribute("points")
    slide(page, "beta_0", 0.04)
    page.wait_for_function("old => document.querySelector('#eta .line').getAttribute('points') !== old", arg=before)
    assert page.locator("#eta .step.landing").count() == 2 and page.locator("#eta .step.launch").count() == 4  # of 6 steps
    assert page.locator("#preset input:checked").get_attribute("value") == "custom"
    assert "beta_0=0.04" in page.url  # so the address can be shared

    first = page.locator("#compared img.drawn").first.get_attribute("src")
    page.click("#generate")
    images = drawn(page, first)
    assert len(images) == 4 and images[0] != images[1] and images[2] != images[3]  # plain and shaped, of two noises
    assert page.locator("#compared .nearest img").count() == 8 and "d1/d2" in page.locator("#compared").inner_text()
    assert page.locator("#compared .kts-chart .line").count() == 2
    shoot(page, "compare")

    slide(page, "beta_0", 0.08)
    page.wait_for_selector("#eta .kts-warning")
    page.click("#generate")
    page.wait_for_selector("text=the velocity would reverse near the end")
    shoot(page, "unsafe")


def test_population_sweep_and_explanation(visit):
    page = visit("?steps=3&touchdown=0.7&alpha_0=0&beta_0=0", color_scheme="dark")
    page.get_by_role("tab", name="Population").click()
    page.click("#draw-population")
    page.wait_for_selector("#crowd .kts-chart")
    assert page.locator("#crowd .point.plain").count() == page.locator("#crowd .point.shaped").count() == 64
    page.locator("#crowd .point").nth(5).click(force=True)
    assert (
        page.locator("#crowd .kts-detail:visible").count() == 1 and page.locator("#crowd .kts-detail:visible img").count() == 3
    )
    page.locator("#crowd .point").nth(70).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector('#crowd [data-detail="1-6"]:visible')
    assert page.locator("#crowd .kts-detail:visible").count() == 1
    shoot(page, "population-dark")
    page.get_by_role("tab", name="Sweep").click()
    page.click("#draw-sweep")
    page.wait_for_selector("#swept table")
    assert page.locator("#swept img").count() == 16
    shoot(page, "sweep-dark")
    page.get_by_role("tab", name="What am I looking at?").click()
    page.wait_for_selector("text=half the squared speed")


def test_two_visitors_do_not_see_each_other_and_stop_reaches_ones_own(visit):
    one, other = visit("?steps=100&count=16&seed=1&beta_0=0.05"), visit("?steps=6&count=1&seed=2&subject=Bag")
    was = [page.locator("#compared img.drawn").first.get_attribute("src") for page in (one, other)]
    one.click("#generate")
    one.wait_for_selector("#compared >> text=/drawing/")
    other.click("#generate")
    one.click("#stop")
    one.wait_for_selector("text=Stopped")
    assert len(drawn(other, was[1])) == 2 and other.locator("#compared h4").all_inner_texts() == ["Bag"]
    assert one.locator("#compared img.drawn").first.get_attribute("src") == was[0]
    assert other.locator("text=Stopped").count() == 0
    again = other.locator("#compared img.drawn").first.get_attribute("src")
    assert again not in was


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
WIDTHS = """selector => [...document.querySelectorAll(selector)].map(e => [e.clientWidth, e.scrollWidth])"""


def test_phone_and_keyboard(visit):
    page = visit(FEW, **PHONE)
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]  # a phone would zoom out
    generate = page.locator("#generate").bounding_box()
    assert generate["y"] + generate["height"] < 844 and page.locator("#beta_0").is_hidden()  # in the first view, and why
    page.get_by_role("button", name="Shape by hand").click()
    page.locator("#beta_0 input[type=range]").focus()
    before = page.locator("#eta .line").get_attribute("points")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("old => document.querySelector('#eta .line').getAttribute('points') !== old", arg=before)
    first = page.locator("#compared img.drawn").first.get_attribute("src")
    page.locator("#generate").focus()
    page.keyboard.press("Enter")
    assert len(drawn(page, first)) == 4
    assert all(seen == whole for seen, whole in page.evaluate(WIDTHS, "#compared .kts-scroll"))  # nothing is cut
    shoot(page, "phone")


def test_wide_things_fit_a_phone_or_scroll(visit):
    for width, fits in ((390, True), (320, False)):
        page = visit("?steps=2&count=1", **(PHONE | {"viewport": {"width": width, "height": 844}}))
        page.get_by_role("tab", name="Sweep").click()
        page.click("#draw-sweep")
        page.wait_for_selector("#swept table")
        ((seen, whole),) = page.evaluate(WIDTHS, "#swept .kts-scroll")
        assert (seen == whole) == fits
        assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        page.locator("#swept td").nth(3).scroll_into_view_if_needed()  # the last of a row
        assert page.locator("#swept td").nth(3).bounding_box()["x"] < width - 50
        shoot(page, f"sweep-{width}")


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:gradio.queueing")
def test_prompts_guidance_and_negative_prompt(browser, monkeypatch, tmp_path):
    """The model that is served unless another is named, on a phone."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    from diffusers_kts.space import app

    blocks = app.build()
    _, address, _ = blocks.queue().launch(prevent_thread_lock=True, quiet=True, **app.launch_options())
    context = browser.new_context(**PHONE)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    try:
        page.goto(f"{address}?steps=3&count=2")
        page.wait_for_selector("#compared img.drawn")
        assert page.locator("#compared h4").count() == 4  # one of each of the first suggestions
        generate = page.locator("#generate").bounding_box()
        assert generate["y"] + generate["height"] < 844
        page.wait_for_function("document.querySelector('#steps input[type=number]').value === '3'")
        page.locator("#subject textarea").fill("noto emoji of a koala\nnoto emoji of a banana")
        first = page.locator("#compared img.drawn").first.get_attribute("src")
        page.click("#generate")
        one = drawn(page, first)
        assert page.locator("#compared h4").all_inner_texts() == ["noto emoji of a koala", "noto emoji of a banana"]
        assert page.locator("#compared .nearest img").count() == 8  # the training images are known
        page.locator("#guidance_scale input[type=number]").fill("3")
        page.locator("#negative_prompt textarea").fill("noto emoji of a tulip")
        page.locator("#seed input").focus()
        page.click("#generate")
        other = drawn(page, one[0])
        assert len(other) == 4 and not set(one) & set(other)
        assert "guidance_scale=3" in page.url and "negative_prompt=noto" in page.url
        shoot(page, "prompts-phone")
    finally:
        context.close()
        blocks.close()


def call(address, name, values):
    """Call the API as anyone may: the events of one call, as text."""
    request = urllib.request.Request(
        f"{address}gradio_api/call/{name}", json.dumps({"data": values}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}gradio_api/call/{name}/{event}", timeout=120) as answer:
        return answer.read().decode()


GOOD = ["Bag", 0, 3, 1, 1.0, "", 0.01, 0.01, 0.6, 1.0, "linear", "exponential"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "Spoon"),
        (1, -1),
        (2, 10_000),
        (2, "many"),
        (3, 17),
        (4, 2.0),
        (5, "ugly"),
        (7, 0.09),
        (7, 1e9),
        (8, 0),
        (10, "cosine"),
        (6, None),
    ],
)
def test_bad_calls_get_an_error_and_the_server_goes_on(server, place, value):
    assert "event: error" in call(server[0], "generate", [*GOOD[:place], value, *GOOD[place + 1 :]])
    if place == 6:
        good = call(server[0], "generate", GOOD)
        assert "event: complete" in good and len(re.findall(r"data:image/png", good)) == 6


def test_nothing_can_be_uploaded(server):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.bin"\r\n\r\n' + b"0" * 5000 + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(urllib.request.Request(f"{server[0]}gradio_api/upload", body, headers), timeout=30)


def wait_until_drawn(job):
    """Until the server is at work on it: "PROCESSING" is over as soon as it has told how far it is."""
    began = time.monotonic()
    while (code := job.status().code.name) not in ("PROCESSING", "PROGRESS", "ITERATING"):
        assert not job.done() and time.monotonic() - began < 120, code
        time.sleep(0.05)


def test_a_caller_of_the_api_may_submit_several_cancel_and_stop(server):
    client = gradio_client.Client(server[0], verbose=False)
    jobs = [client.submit("Bag", seed, 5, 1, *GOOD[4:], api_name="/generate") for seed in range(4)]
    texts = [job.result(120) for job in jobs]
    assert len(set(texts)) == 4 and all(text.count("data:image/png") == 6 for text in texts)

    long = [client.submit("all classes", seed, 100, 16, *GOOD[4:], api_name="/generate") for seed in range(3)]
    wait_until_drawn(long[0])
    long[0].cancel()
    began = time.monotonic()
    assert client.predict("Bag", 1, 2, 1, *GOOD[4:], api_name="/generate")  # two may be drawn at a time: a slot is free
    assert time.monotonic() - began < 10

    last = client.submit("all classes", 9, 100, 16, *GOOD[4:], api_name="/generate")
    wait_until_drawn(last)
    client.predict(api_name="/stop")
    with pytest.raises(gradio_client.exceptions.AppError, match="Stopped"):
        last.result(60)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:gradio.queueing")
def test_the_pictures_of_some_dozens_of_visitors_are_kept_and_no_more(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    from diffusers_kts.space import app, served

    blocks = app.Page(served.Served("memorizing")).blocks()
    _, address, _ = blocks.queue().launch(prevent_thread_lock=True, quiet=True, **app.launch_options())
    try:
        name = next(i for i, f in blocks.fns.items() if f.api_name == "generate")
        for visitor in range(40):
            body = json.dumps({"data": GOOD, "fn_index": name, "session_hash": f"visitor{visitor}"}).encode()
            asked = urllib.request.Request(f"{address}gradio_api/queue/join", body, {"Content-Type": "application/json"})
            urllib.request.urlopen(asked, timeout=60).close()
            with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=visitor{visitor}", timeout=60) as answer:
                assert any(b"process_completed" in line and b"data:image/png" in line for line in answer)
        assert 0 < len(blocks.app.state_holder.session_data) <= 32
    finally:
        blocks.close()
