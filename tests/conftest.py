"""What every test may use: the option `--data-dir` and the fixtures `data_dir` and `listening`."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

Peer = Callable[[socket.socket], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data-dir", type=Path, help="folder with the data sets (mnist/, cifar10/, text/)")


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The folder that `--data-dir` names, absolute; the test is skipped where none was given."""
    folder: Path | None = request.config.getoption("--data-dir")
    if folder is None:
        pytest.skip("needs data sets: run pytest with --data-dir DIR")
    if not folder.is_dir():
        pytest.fail(f"--data-dir {folder} is not a folder; name the one that holds mnist/")
    return folder.resolve()


@pytest.fixture
def listening() -> Callable[[Peer], AbstractContextManager[int]]:
    """While `listening(peer)` is entered, `peer` deals with one client after the other at the port that it gives."""
    return _listening


@contextmanager
def _listening(peer: Peer) -> Iterator[int]:
    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client, suppress(OSError):
                peer(client)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
