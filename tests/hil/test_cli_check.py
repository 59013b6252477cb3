"""`hil check`: a table and a last line for a person, one object for a machine, exit codes."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hil.bench import open_tester
from hil.cli import main
from hil.mock_hw.scpi_port import ScpiPort
from hil.serving import serving

CHIP = "pcm-90nm?arrays=2&rows=64&columns=32"
PATIENT = ["--timeout", "5"]


def check(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["check", *arguments], prog_name="hil", env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def uri() -> Iterator[str]:
    """A twin that a thread serves."""
    with serving(f"twin:{CHIP}", ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        yield server.uri
        server.stop()
        thread.join()


def test_a_healthy_tester_gives_a_table_and_exit_code_0(uri: str) -> None:
    result = check(uri, *PATIENT)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["group", "check", "result", "detail"]
    assert any(line.split()[:4] == ["SCPI", "status", "*IDN?", "has"] and "passed" in line for line in lines)
    assert any("2 checks" in line and "needs --allow-programming" in line for line in lines)
    passed, failed, not_applicable = (int(part.split()[0]) for part in lines[-1].split(", "))
    assert lines[-1] == f"{passed} passed, 0 failed, {not_applicable} not applicable"
    assert passed > 40
    assert failed == 0


def test_programming_names_its_cells(uri: str) -> None:
    result = check(uri, *PATIENT, "--allow-programming", "--cells", "0:3:4", "--cells", "1:63:31")
    assert result.exit_code == 0
    assert "cells 0:3:4, 1:63:31; left RESET" in result.stdout


@pytest.fixture
def without_opc(monkeypatch: pytest.MonkeyPatch) -> None:
    common: Any = ScpiPort._common  # noqa: SLF001

    def broken(self: ScpiPort) -> dict[str, Any]:
        return {name: handler for name, handler in common(self).items() if name != "*OPC?"}

    monkeypatch.setattr(ScpiPort, "_common", broken)


@pytest.mark.usefixtures("without_opc")
def test_a_failure_is_exit_code_1_and_says_what_was_expected(uri: str) -> None:
    result = check(uri, *PATIENT)
    assert result.exit_code == 1
    assert "part of the mandatory set is there and *OPC? is missing" in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1].split(", ")[1] == "1 failed", result.stdout


@pytest.mark.usefixtures("without_opc")
def test_json_is_one_object(uri: str) -> None:
    result = check(uri, *PATIENT, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found.keys() == {"uri", "identity", "passed", "failed", "not_applicable", "checks"}
    assert (found["uri"], found["failed"], found["identity"]["kind"]) == (uri, 1, "twin"), result.stdout
    (failed,) = [one for one in found["checks"] if one["result"] == "failed"]
    assert failed.keys() == {"group", "name", "why", "result", "detail"}
    assert "-113" in failed["detail"]
    assert len(found["checks"]) == found["passed"] + found["failed"] + found["not_applicable"]


def test_a_tester_that_cannot_be_reached_is_one_line_and_exit_code_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        silent = check(f"tcp://127.0.0.1:{port}", "--timeout", "0.1")
    refused = check(f"tcp://127.0.0.1:{port}", "--timeout", "0.1")
    for result, says in ((silent, "is not answered in 0.1 s"), (refused, "connection refused")):
        assert result.exit_code == 3
        assert result.stdout == ""
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_tester_in_use_is_one_line_and_exit_code_3(uri: str) -> None:
    with closing(open_tester(uri)):
        for arguments in ((), ("--json",)):
            result = check(uri, *PATIENT, *arguments)
            assert result.exit_code == 3
            assert result.stdout == ""
            assert "the tester closed the connection; it said '-200,\"Execution error;in use by" in result.stderr
            assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tcp://nowhere"], "expected tcp://host:port"),
        (["nothing"], "unknown tester"),
        (["twin:", "--cells", "0:0:0"], "--allow-programming"),
        (["twin:", "--allow-programming", "--cells", "0:0"], "expected ARRAY:ROW:COLUMN"),
        (["twin:", "--allow-programming", "--cells", "7:0:0"], "outside the chip"),
        (["twin:", "--timeout", "0"], "See `hil check --help`"),
    ],
)
def test_what_is_malformed_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    result = check(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_a_twin_in_this_process_has_no_wire() -> None:
    result = check(f"twin:{CHIP}")
    assert result.exit_code == 0
    assert "spoken to in this process" in result.stdout


def test_help_has_an_example() -> None:
    result = check("--help")
    assert "hil check tcp://192.168.0.7:5025" in result.stdout
