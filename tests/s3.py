"""A server that speaks S3, for tests: moto on 127.0.0.1, which notes what it is asked and can be told to refuse."""

import os
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any

import pytest

REGION = "us-east-1"
_numbers = count()


class Server:
    """A server on a free port.

    Attributes
    ----------
    asked : list of (str, str)
        Method and path, with what stands behind a question mark, of every request since it was cleared last.
    refuse : callable
        Told method, path and headers (WSGI's environment) of a request; returns status and code of a refusal, or None.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        class Quiet(MotoRequestHandler):
            def log(self, type: str, message: str, *args: object) -> None:
                """Say nothing."""

        self.asked: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str, dict[str, Any]], tuple[int, str] | None] = lambda method, path, headers: None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def stop(self) -> None:
        """Close the port; what was stored is still there for the next server of this process."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["RAW_URI"]
        self.asked.append((method, path))
        refusal = self.refuse(method, path, environ)
        if refusal is None:
            return self._app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code = refusal
        start_response(f"{status} {HTTPStatus(status).phrase}", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()]


@pytest.fixture(scope="session")
def s3_servers() -> Iterator[Server]:
    """Return the server of all tests; `s3_server` names it to those who ask the AWS tools' variables."""
    pytest.importorskip("moto", reason="the server for tests is moto's")
    pytest.importorskip("obstore", reason="stores on a server are read with obstore")
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def s3_server(s3_servers: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a server that the variables of the AWS tools name, whatever they and the user's files say otherwise."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    use(s3_servers, monkeypatch)
    yield s3_servers
    s3_servers.refuse = lambda method, path, headers: None


@pytest.fixture
def bucket(s3_server: Server) -> str:
    """Make a bucket; return its address."""
    return make_bucket()


def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the variables name a server, and hide the files of the user that may name another."""
    from avfuse.stores import _bucket

    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_SKIP_SIGNATURE"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_bucket, "MAX_RETRIES", 1)  # a server that is gone is gone at once
    server.asked.clear()


def make_bucket() -> str:
    """Make a bucket on the server that the variables name; return its address."""
    name = f"bucket-{next(_numbers)}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/{name}", method="PUT"), timeout=20):
        return f"s3://{name}"
