"""Options and fixtures of the whole suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.paths import TESTS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="write tests/golden/* anew instead of comparing with it")


@pytest.fixture
def assert_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`assert_golden(name, text)`: the text is what `tests/golden/NAME` holds."""

    def check(name: str, text: str) -> None:
        path = TESTS / "golden" / name
        if request.config.getoption("--overwrite"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; run with --overwrite and look at what it writes"
        assert text == path.read_text(encoding="utf-8")

    return check
