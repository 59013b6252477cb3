"""What every test may use: the option `--data-dir` and the fixture `data_dir`."""

from pathlib import Path

import pytest


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
