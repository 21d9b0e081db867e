"""`Session`: several estimates of one configuration in one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axmem_trace.config.document.overrides import Settings, merge_settings, parse_settings
from axmem_trace.estimation import estimate

if TYPE_CHECKING:
    from axmem_trace.report import Report


class Session:
    """A configuration that is estimated several times, with changes.

        session = Session("config.yml", gpu="24GiB")
        session.estimate().fits
        session.estimate(overrides={"sequence_len": 2048}).fits

    The first estimate imports the libraries and checks that repeated layers are equal. Later estimates in the same
    process do neither, if only the number of tokens is different. Nothing else is kept: each estimate reads the files
    and records the run again, so no estimate is out of date. `axmem_trace.estimate` uses the same kept data.

    Args:
        config: a YAML file, or its content as a mapping.
        overrides, assumptions: those of `axmem_trace.estimate`, for all estimates.
        settings: other arguments of `axmem_trace.estimate`, for all estimates: `gpu`, `num_gpus`, `hub`, ...
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any],
        *,
        overrides: Settings = (),
        assumptions: Settings = (),
        **settings: Any,
    ) -> None:
        self._config, self._settings = config, settings
        self._overrides, self._assumptions = overrides, assumptions

    def estimate(self, *, overrides: Settings = (), assumptions: Settings = (), **settings: Any) -> Report:
        """Like `axmem_trace.estimate`. The arguments here are added to those of the session; for the same key, the
        arguments here count.

        Raises:
            ConfigError, AxmemError: as `axmem_trace.estimate`.
        """
        return estimate(
            self._config,
            overrides=merge_settings(self._overrides, dict(parse_settings(overrides, "--set")), "--set"),
            assumptions=merge_settings(self._assumptions, dict(parse_settings(assumptions, "--assume")), "--assume"),
            **{**self._settings, **settings},
        )
