"""A stand-in for the Hub's server, which takes uploads as the real one does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants


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
