"""How the installer finds out what will be downloaded."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = util.spec_from_file_location("install", Path(__file__).parents[3] / "deploy" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Index(BaseHTTPRequestHandler):
    """Answers HEAD as package indexes do, with and without a size."""

    def do_HEAD(self) -> None:
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path == "/sized":
            self.send_header("Content-Length", "12345")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(("path", "size"), [("/sized", 12345), ("/unsized", None), ("/missing", None)])
def test_sizes_over_http(install: ModuleType, index: str, path: str, size: int | None) -> None:
    assert install.size_of(index + path) == size


def test_sizes_of_files(install: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a b.whl"
    path.write_bytes(b"x" * 77)
    assert install.size_of(path.as_uri()) == 77
    assert install.size_of((tmp_path / "gone.whl").as_uri()) is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "nonsense", "git+ssh://example.org/x"])
def test_what_cannot_be_told_is_none(install: ModuleType, url: str) -> None:
    assert install.size_of(url) is None
