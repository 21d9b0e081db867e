"""Sources of a `config.json`: a local directory, the Hugging Face cache, the Hub.

Each search returns a `Look`: the content, or one line that says why nothing was found. A broken file is an error
immediately, because a search in further sources would hide it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from axmem_trace.catalogue.config_file import ADAPTER_FILE, CONFIG_FILE, read_config_file

HUB_TIMEOUT_SECONDS = 5.0
_HUB_ID = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a search in one source. `config` is `None` if nothing was found; then `outcome` says why."""

    place: str
    outcome: str
    config: dict[str, Any] | None = field(default=None)
    directory: str = ""
    source: str = ""
    caution: str = ""


def is_hub_id(name: str) -> bool:
    """True if the Hub could have a repository of this name (huggingface_hub `validate_repo_id`)."""
    parts = name.split("/")
    plain = all(part and part[0] not in "-." and part[-1] not in "-." for part in parts)
    return bool(_HUB_ID.fullmatch(name)) and plain and "--" not in name and ".." not in name


def look_in_directory(name: str, base_directory: Path | None) -> Look:
    """Searches a directory with `config.json`, or that file itself. A relative path starts from the working directory, then
    from `base_directory`."""
    place = "local directory"
    seen: list[str] = []
    for path in _local_candidates(name, base_directory):
        try:
            if path.is_file() and path.suffix == ".json":
                return _local_look(path)
            if (path / CONFIG_FILE).is_file():
                return _local_look(path / CONFIG_FILE)
            if path.is_dir():
                seen.append(f"{path} exists but has no {CONFIG_FILE}{_adapter_hint(path)}")
        except OSError as error:  # a name too long for the file system, a directory that may not be entered
            seen.append(f"{path.name[:60]}: {error.strerror or error}")
    return Look(place, "; ".join(seen) or "no such directory")


def look_in_cache(name: str, revision: str) -> Look:
    """Searches the Hugging Face cache: `models--org--name/snapshots/<commit>/config.json`; `refs/<revision>` has the commit.

    The layout is huggingface_hub's (`file_download.py`, `repo_folder_name`, `try_to_load_from_cache`).
    """
    folder = "models--" + name.replace("/", "--")
    roots = list(_cache_roots())
    for root in roots:
        try:
            path = _cached_config(root / folder, revision)
        except OSError:
            continue
        if path is not None:
            return Look("cache", "found", read_config_file(path), str(path.parent), f"cache {path.parent}")
    looked = ", ".join(str(root) for root in roots)
    return Look("cache", f"not in {looked}" + (f" at revision {revision}" if revision else ""))


def look_on_hub(name: str, revision: str) -> Look:
    """Searches the Hub: only for `config.json`, with the user's token. It waits at most a few seconds for an answer."""
    unreachable = _why_unreachable()
    if unreachable:
        return Look("hub", unreachable)
    try:
        path = Path(_download_config(name, revision))
    except Exception as error:  # every error of the network or its libraries becomes an outcome, never a traceback
        return Look("hub", _explain_hub_error(error))
    at = f"@{revision}" if revision else ""
    return Look("hub", "found", read_config_file(path), str(path.parent), f"hub {name}{at}")


def hub_is_offline() -> bool:
    """True if the environment forbids the Hub (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`, by huggingface_hub's rules)."""
    values = (os.environ.get(key, "") for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in {"1", "ON", "YES", "TRUE"} for value in values)


def _local_candidates(name: str, base_directory: Path | None) -> Iterator[Path]:
    path = Path(os.path.expanduser(name))
    yield path
    if base_directory is not None and not path.is_absolute() and not _is_here(base_directory):
        yield base_directory / path


def _is_here(directory: Path) -> bool:
    """True if `directory` is the working directory. False if the working directory was deleted."""
    try:
        return directory.resolve() == Path.cwd()
    except (OSError, RuntimeError):
        return False


def _local_look(path: Path) -> Look:
    directory = str(path.parent)
    return Look("local directory", "found", read_config_file(path), directory, f"directory {directory}")


def _adapter_hint(path: Path) -> str:
    if not (path / ADAPTER_FILE).is_file():
        return ""
    return f" (it has {ADAPTER_FILE}: it is an adapter; name its base model, and the adapter as `lora_model_dir`)"


def _cache_roots() -> Iterator[Path]:
    """Folders of Hub caches, in the order in which huggingface_hub and transformers search them, without duplicates."""
    environ = os.environ
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    named = [environ.get(key, "") for key in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE")]
    candidates = [*named, str(Path(home) / "hub")]
    yield from dict.fromkeys(Path(os.path.expanduser(root)) for root in candidates if root)


def _cached_config(repository: Path, revision: str) -> Path | None:
    snapshots = repository / "snapshots"
    reference = repository / "refs" / (revision or "main")
    # The revision comes from the YAML: it must not point outside the repository's folder.
    if ".." in Path(revision).parts or Path(revision).is_absolute() or "\0" in revision:
        return None
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    if commit:
        path = snapshots / commit / CONFIG_FILE
        return path if path.is_file() else None
    found = list(snapshots.glob(f"*/{CONFIG_FILE}"))  # only commits were downloaded, no branch: use the newest
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _why_unreachable() -> str:
    """Why the Hub can't be reached; empty if it can.

    One connection is tried first: huggingface_hub's own six attempts take more than twenty seconds without a network.
    """
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxies = {} if proxy_bypass(endpoint.hostname or "") else getproxies()
    proxy = proxies.get(endpoint.scheme) or proxies.get("all")
    target = urlsplit(proxy if not proxy or "//" in proxy else f"//{proxy}") if proxy else endpoint
    try:
        port = target.port or (80 if target.scheme == "http" else 443)
        with socket.create_connection((target.hostname or "", port), timeout=HUB_TIMEOUT_SECONDS):
            return ""
    except (OSError, ValueError) as error:
        return f"{target.hostname} can't be reached ({getattr(error, 'strerror', None) or error})"


def _download_config(name: str, revision: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shows_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        path = hf_hub_download(name, CONFIG_FILE, revision=revision or None, etag_timeout=HUB_TIMEOUT_SECONDS)
    finally:
        if shows_bars:
            enable_progress_bars()
    return str(path)


_HUB_OUTCOMES = {
    "GatedRepoError": "gated: the token in use may not read it (accept the model's terms, then `hf auth login`)",
    "RepositoryNotFoundError": "no such repository, or a private one that the token in use may not read",
    "RevisionNotFoundError": "the repository has no such revision",
    "RemoteEntryNotFoundError": f"the repository has no {CONFIG_FILE}",
    "EntryNotFoundError": f"the repository has no {CONFIG_FILE}",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE forbids it",
    "LocalEntryNotFoundError": "no connection to the Hub",
}


def _explain_hub_error(error: Exception) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _HUB_OUTCOMES:
            return _HUB_OUTCOMES[kind.__name__]
    first_line = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first_line[0][:200]}" if first_line else type(error).__name__
