"""``--push-to-hub`` against a small server that answers as the Hub's HTTP API does; no network."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

JOB = [
    "--class-labels",
    "Bag,Coat,Shirt",
    "--images-per-prompt",
    3,
    "--keep-top",
    1,
    "--num-inference-steps",
    3,
    "--output",
    "out",
]


@pytest.fixture
def hub(monkeypatch):
    """The stand-in: ``created`` repositories, and ``files`` committed. With ``refuses`` it answers 403."""

    class Hub(BaseHTTPRequestHandler):
        created: list[dict] = []
        files: dict[str, bytes] = {}
        refuses: tuple[str, ...] = ()  # methods
        user = {"name": "a", "auth": {"accessToken": {"role": "write"}}}

        def answer(self, value, code=200):
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if "GET" in Hub.refuses:
                return self.answer({"error": "not yours"}, 403)
            if self.path == "/api/whoami-v2":
                return self.answer(Hub.user)
            return self.answer({"id": "a/b", "sha": "0" * 40, "siblings": []})

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "POST" in Hub.refuses:
                return self.answer({"error": "not yours"}, 403)
            if self.path == "/api/repos/create":
                Hub.created.append(json.loads(body))
                return self.answer({"url": "https://huggingface.co/datasets/a/b"})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in asked]
                return self.answer({"files": modes})
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self.answer(
                    {"commitUrl": "https://huggingface.co/datasets/a/b/commit/1", "commitOid": "1" * 40, "success": True}
                )
            return self.answer({"error": self.path}, 404)

        def log_message(self, *args):
            pass

    Hub.created, Hub.files = [], {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)

    class Api(huggingface_hub.HfApi):
        def __init__(self):
            super().__init__(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_none")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_finished_data_set_goes_to_the_hub_with_its_card(kts, tmp_path, hub):
    code, out, err = kts("generate", *JOB, "--push-to-hub", "a/b")
    assert code == 0 and "/datasets/a/b" in out.splitlines()[-1], err
    (created,) = hub.created
    assert (created["name"], created["organization"], created["type"], created["visibility"]) == (
        "b",
        "a",
        "dataset",
        "private",
    )
    local = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert hub.files == {name: data for name, data in local.items() if not name.startswith(".kts/")}
    card = huggingface_hub.DatasetCard(hub.files["README.md"].decode())
    assert card.data.configs[0]["data_files"] == ["metadata.jsonl", "images/**"] and card.data.size_categories == ["n<1K"]
    assert "3 samples of `generalizing`, drawn with 27 network calls" in card.text and "| keep_top | `1` |" in card.text

    # what others get from the Hub: the folder as it was uploaded, read by its card
    for name, data in hub.files.items():
        (tmp_path / "down" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "down" / name).write_bytes(data)
    loaded = datasets.load_dataset(str(tmp_path / "down"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["class_name"][:] == ["Bag", "Coat", "Shirt"] and loaded[0]["image"].size == (28, 28)
    assert kts("verify", "out")[0] == 0


def test_a_hub_that_refuses_leaves_the_data_set_and_says_so(kts, tmp_path, hub):
    hub.refuses = ("POST",)
    code, _, err = kts("generate", *JOB, "--push-to-hub", "a/b")
    assert code == 2 and "the data set is complete, but a/b cannot be written" in err and "Traceback" not in err
    assert kts("verify", "out")[0] == 0
    hub.refuses = ()
    assert kts("generate", *JOB, "--push-to-hub", "a/b")[0] == 0 and "metadata.jsonl" in hub.files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"refuses": ("GET",)}, "not yours"),
        ({"user": {"name": "c", "orgs": [{"name": "d"}]}}, "belongs to none of c, d"),
        ({"user": {"name": "a", "auth": {"accessToken": {"role": "read"}}}}, "may only read"),
    ],
)
def test_a_hub_that_cannot_be_written_to_is_known_before_anything_is_drawn(kts, tmp_path, hub, change, words):
    for name, value in change.items():
        setattr(hub, name, value)
    code, _, err = kts("generate", *JOB, "--push-to-hub", "a/b")
    assert code == 2 and "a/b cannot be written" in err and words in err and "Traceback" not in err
    assert not (tmp_path / "out").exists() and not hub.created
