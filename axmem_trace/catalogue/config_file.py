"""Read one `config.json`, with a limit on its size and checks of its content. Errors name its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from axmem_trace.errors import ConfigError
from axmem_trace.units import MIB, format_bytes

CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 16 * MIB
"""A published `config.json` has at most tens of KiB; with the label map of a classifier, up to a few MiB."""
_FLOAT_TAG = "__float__"


def read_config_file(path: Path) -> dict[str, Any]:
    """The content of a `config.json`.

    Raises:
        ConfigError: unreadable, larger than `MAX_CONFIG_BYTES`, no JSON object, or without a `model_type`.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise _broken(path, f"is larger than {format_bytes(MAX_CONFIG_BYTES)}, which no model configuration is")
        config = json.loads(path.read_text(encoding="utf-8"), object_hook=_special_float)
    except json.JSONDecodeError as error:
        raise _broken(path, f"is no valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise _broken(path, f"is no UTF-8 text: byte {error.start} can't be decoded") from None
    except RecursionError:
        raise _broken(path, "is nested too deeply to be a model configuration") from None
    except ValueError as error:  # e.g. an integer of more digits than Python converts
        raise _broken(path, f"can't be read as JSON: {error}") from None
    except OSError as error:
        raise _broken(path, f"can't be read: {error.strerror or error}") from None
    refuse_broken_config(config, str(path))
    assert isinstance(config, dict)
    return config


def _special_float(found: dict[str, Any]) -> Any:
    """Converts transformers 5's form of a number that JSON cannot express (`{"__float__": "Infinity"}`, as in Mamba 2's
    limit of time steps); any other object is not changed.

    Source: transformers `configuration_utils.py`, `PreTrainedConfig._decode_special_floats`.
    """
    if found.keys() == {_FLOAT_TAG} and found[_FLOAT_TAG] in ("Infinity", "-Infinity", "NaN"):
        return float(found[_FLOAT_TAG])
    return found


def refuse_broken_config(config: object, place: str) -> None:
    """Raise `ConfigError` unless `config` is a mapping with a `model_type`, by which transformers chooses the class."""
    if not isinstance(config, dict):
        raise _broken(Path(place), f"contains a JSON {_json_name(config)}, not an object of configuration fields")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(
            problem=f"{place} has no `model_type`, so transformers can't know which architecture it is",
            key="base_model",
            remedy='add "model_type" to it (for example "llama"), with the value on the model\'s page on the Hub',
        )


def _json_name(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _broken(path: Path, what: str) -> ConfigError:
    return ConfigError(
        problem=f"the base model's configuration {path} {what}",
        key="base_model",
        remedy=f"replace it with the {CONFIG_FILE} from the model's page on the Hub",
    )
