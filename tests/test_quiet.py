"""Messages of libraries are hidden from the user. Afterwards everything is restored."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings

import pytest

import axmem_trace
from axmem_trace.errors import ConfigError
from axmem_trace.quiet import aloud, quiet_libraries, user_stream


def chatter():
    print("to stdout")
    print("to stderr", file=sys.stderr)
    warnings.warn("a warning", stacklevel=1)
    logging.getLogger("some.library").warning("a log line")


def test_nothing_is_shown_and_everything_is_restored(capsys):
    before = (sys.stdout, sys.stderr, logging.root.manager.disable, list(warnings.filters))
    with quiet_libraries():
        chatter()
    assert capsys.readouterr() == ("", "")
    assert (sys.stdout, sys.stderr, logging.root.manager.disable, list(warnings.filters)) == before
    print("seen")
    assert capsys.readouterr().out == "seen\n"


def test_nested(capsys):
    with quiet_libraries():
        with quiet_libraries():
            chatter()
        chatter()
        assert user_stream("stdout") is not sys.stdout
    assert capsys.readouterr() == ("", "")


def test_a_bug_shows_the_hidden_output(capsys):
    def fail():
        print("a library's last words")
        raise KeyError("bug")

    with pytest.raises(KeyError), quiet_libraries():
        fail()
    assert capsys.readouterr() == ("", "a library's last words\n")


def test_a_refusal_shows_nothing_more(capsys):
    def refuse():
        chatter()
        raise ConfigError("no such optimizer")

    with pytest.raises(ConfigError), quiet_libraries():
        refuse()
    assert capsys.readouterr() == ("", "")


def test_logging_that_the_user_disabled_stays_disabled():
    logging.disable(logging.CRITICAL)
    try:
        with quiet_libraries():
            assert logging.root.manager.disable == logging.CRITICAL
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)


def test_a_handler_made_inside_writes_to_the_users_stderr_afterwards(capsys):
    """transformers makes its handler when it is imported, with the `sys.stderr` at that moment."""
    with quiet_libraries():
        handler = logging.StreamHandler()
        handler.emit(logging.makeLogRecord({"msg": "hidden"}))
    handler.emit(logging.makeLogRecord({"msg": "shown"}))
    handler.flush()
    assert capsys.readouterr() == ("", "shown\n")


def test_progress_is_reported_nevertheless(capsys):
    with quiet_libraries(), quiet_libraries():
        aloud(print)("tracing")
        print("hidden")
    assert capsys.readouterr() == ("tracing\n", "")


def test_estimate_is_quiet_and_keeps_its_signature(capsys):
    assert "progress" in inspect.signature(axmem_trace.estimate).parameters
    with pytest.raises(ConfigError, match="base model"):
        axmem_trace.estimate({"micro_batch_size": 1}, progress=print)
    assert capsys.readouterr() == ("reading\n", "")


def test_dir_of_the_package_lists_only_public_names():
    assert dir(axmem_trace) == "AxmemError ConfigError Fit Report Session __version__ estimate fit".split()
