"""Options and fixtures of the whole suite."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.left_behind import left_behind
from support.paths import TESTS

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when imported; more threads only wait for each other

TESTS_BETWEEN_WALKS = 2000
_tests = itertools.count()


@pytest.fixture(autouse=True)
def libraries_are_frozen() -> None:
    """Keeps the garbage collector from walking all of torch and transformers again in every trace.

    A trace collects garbage before it begins. With all objects that a test run has loaded, that was half of its time.
    So libraries that a test imported are frozen before the next test. A collection of all objects takes a third of a
    second and happens only after many tests. Between two such collections, only objects newer than the last test are
    collected.
    """
    if next(_tests) % TESTS_BETWEEN_WALKS == 0:
        gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture
def short_models_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of 9 layers are folded, though tracing two short ones is more work: a reference of 9 layers is less."""
    from axmem_trace.models import repeated_layers

    monkeypatch.setattr(repeated_layers, "WORTH_FOLDING", 1.1)  # 5 and 4 layers instead of 9; not instead of 8


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, all tests of a file run in the same worker, so the fixtures of a file run once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="write tests/golden/* anew instead of comparing with it")


@pytest.fixture
def assert_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`assert_golden(name, text)` checks that the text equals the content of `tests/golden/NAME`."""

    def check(name: str, text: str) -> None:
        path = TESTS / "golden" / name
        if request.config.getoption("--overwrite"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; run with --overwrite and look at what it writes"
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Checks after each test that libraries, torch's mode stacks and its global hooks are unchanged."""
    yield
    found = left_behind()
    assert not found, f"left behind: {'; '.join(found)}"
