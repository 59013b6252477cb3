"""What is no tester, or is in use, is told at once; what half works is checked."""

import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from hil.check import run_checks
from hil.checking import Result
from hil.protocols.errors import TesterError
from hil.serving import serving

TIMEOUT = 0.2
WEB = b"HTTP/1.1 400 Bad Request\r\nServer: web\r\nConnection: close\r\n\r\n<html>1,2</html>\r\n"
SSH = b"SSH-2.0-OpenSSH_9.6\r\n"
IN_USE = b'-200,"Execution error;in use by 127.0.0.1:49504"\n'
NOISE = np.random.default_rng(1).bytes(3000)

Peer = Callable[[socket.socket], None]
Listening = Callable[[Peer], AbstractContextManager[int]]


def until_it_goes(client: socket.socket) -> None:
    while client.recv(4096):
        pass


def hangs_up_after(data: bytes) -> Peer:
    """Speaks first, and closes."""

    def peer(client: socket.socket) -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        until_it_goes(client)

    return peer


def answers(data: bytes, then_closes: bool = False) -> Peer:
    """Gives the same answer to the first thing that comes."""

    def peer(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(data)
        if then_closes:
            client.shutdown(socket.SHUT_WR)
        until_it_goes(client)

    return peer


def echoes(client: socket.socket) -> None:
    while data := client.recv(4096):
        client.sendall(data)


def babbles(client: socket.socket) -> None:
    while True:
        client.sendall(b"x" * 100)


STRANGERS: dict[str, tuple[Peer, str, str]] = {
    "another client is served": (hangs_up_after(IN_USE), "closed the connection; it said .*in use by", "codec="),
    "an SSH server hangs up": (hangs_up_after(SSH), r"closed the connection; it said 'SSH-2\.0", "codec="),
    "it closes at once": (hangs_up_after(b""), "closed the connection", "codec="),
    "a web server hangs up": (answers(WEB, True), r"closed the connection; it said 'HTTP/1\.1 400", "codec="),
    "a web server waits": (answers(WEB), r"answers, but not as a tester.*'HTTP/1\.1 400.*expected a", "codec="),
    "what is sent comes back": (echoes, "answers, but not as a tester: asked for its state.*expected a", "codec="),
    "random bytes come": (answers(NOISE), r"answers, but not as a tester.*\(3000 bytes\)", "codec="),
    "it never stops talking": (babbles, "answers, but not as a tester.*'xxxx", "codec="),
}


@pytest.mark.parametrize("codec", ["scpi", "frames"])
@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_tester_is_one_error_that_shows_what_came(listening: Listening, name: str, codec: str) -> None:
    peer, says, never = STRANGERS[name]
    with listening(peer) as port, pytest.raises(TesterError, match=says) as caught:
        run_checks(f"tcp://127.0.0.1:{port}?codec={codec}", timeout=TIMEOUT)
    assert never not in str(caught.value)
    assert "\n" not in str(caught.value)


FRAME = bytes.fromhex("a55a0185 01000000 00000000 00000000 00000000")
"""Of a reply, with wrong checksums."""


@pytest.mark.parametrize(
    ("codec", "peer", "says"),
    [
        ("scpi", until_it_goes, r"SYST:ERR.* is not answered in 0\.2 s; does it speak \?codec=frames"),
        ("frames", until_it_goes, r"a5 5a 01 05.* is not answered in 0\.2 s; does it speak \?codec=scpi"),
        ("scpi", answers(FRAME), r"it said a5 5a.*does it speak \?codec=frames"),
        ("frames", answers(b'-113,"Undefined header"\n'), r"it said '-113.*does it speak \?codec=scpi"),
    ],
)
def test_the_other_codec_is_named_where_nothing_comes_or_its_messages(
    listening: Listening, codec: str, peer: Peer, says: str
) -> None:
    with listening(peer) as port, pytest.raises(TesterError, match=says):
        run_checks(f"tcp://127.0.0.1:{port}?codec={codec}", timeout=TIMEOUT)


@pytest.mark.parametrize("codec", ["scpi", "frames"])
def test_a_web_server_is_told_by_its_own_words(codec: str) -> None:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        with pytest.raises(TesterError) as caught:
            run_checks(f"tcp://127.0.0.1:{server.server_port}?codec={codec}", timeout=TIMEOUT)
        server.shutdown()
        thread.join()
    assert "?codec=" not in str(caught.value)
    text = str(caught.value)  # which part of the page has come when the connection ends is a matter of time
    assert codec == "scpi" or (
        "closed the connection; it said " in text and ("<!DOCTYPE HTML" in text or "Bad request" in text)
    )


def test_a_tester_that_speaks_text_only_names_its_codec_to_a_host_that_speaks_frames() -> None:
    with serving("twin:pcm-90nm?arrays=1&rows=8&columns=8", ("127.0.0.1", 0), "scpi") as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        with pytest.raises(TesterError, match=r"""it said '-\d+,".*does it speak \?codec=scpi"""):
            run_checks(f"{server.uri}?codec=frames", timeout=TIMEOUT)
        server.stop()
        thread.join()


def refuses(client: socket.socket) -> None:
    """Knows `SYSTem:ERRor?` only, as a message of its own."""
    while data := client.recv(4096):
        for line in data.split(b"\n")[:-1]:
            client.sendall(b'+0,"No error"\r\n' if line.strip() == b"SYST:ERR?" else b"")


@pytest.mark.parametrize(("codec", "peer"), [("scpi", refuses), ("frames", answers(FRAME))])
def test_what_half_works_is_checked(listening: Listening, codec: str, peer: Peer) -> None:
    with listening(peer) as port:
        report = run_checks(f"tcp://127.0.0.1:{port}?codec={codec}", timeout=0.02)
    assert report.identity is None
    assert report.count(Result.FAILED) > 5


def test_what_hangs_up_on_the_second_question_is_told_with_what_it_said(listening: Listening) -> None:
    def peer(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(b"what?\n")
        client.recv(4096)

    with listening(peer) as port, pytest.raises(TesterError, match=r"closed the connection; it said 'what\?"):
        run_checks(f"tcp://127.0.0.1:{port}", timeout=TIMEOUT)
