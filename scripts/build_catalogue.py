"""Makes `axmem_trace/catalogue/models.json` from a directory of `config.json` files.

    python scripts/build_catalogue.py DIRECTORY [-o FILE]

DIRECTORY contains `<organisation>--<name>.json` files and `_index.json`, a list of
`{id, file, params_meta, published, trust, config_source, note}`. Only files in the index are used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parent.parent / "axmem_trace" / "catalogue" / "models.json"
DROPPED_FIELDS = ("transformers_version", "_name_or_path")
"""Fields of a config.json about how the file was written, and not about the model."""
COMPLETED: dict[str, dict[str, Any]] = {
    "PaddlePaddle/PaddleOCR-VL-1.6": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [16, 24, 24]}
        }
    },
}
"""Fields that a derived file does not have but the model's code needs, by id. They need no memory: any three sections
with the sum of half of `head_dim` are equivalent (`modeling_paddleocr_vl.py`, `apply_multimodal_rotary_pos_emb`)."""


def read_models(directory: Path) -> dict[str, dict[str, Any]]:
    """Reads the index and the files into records by id. A file without `model_type` stops the build."""
    models = {}
    for entry in json.loads((directory / "_index.json").read_text(encoding="utf-8")):
        config = json.loads((directory / entry["file"]).read_text(encoding="utf-8"))
        if not config.get("model_type"):
            raise SystemExit(f"{entry['file']}: no model_type")
        for part, fields in COMPLETED.get(entry["id"], {}).items():
            config[part] = {**fields, **config[part]}
        models[entry["id"]] = {
            "parameters": entry["params_meta"],
            "published": entry["published"],
            "trust": entry["trust"],
            "source": entry["config_source"],
            "note": entry.get("note", ""),
            "config": {key: value for key, value in config.items() if key not in DROPPED_FIELDS},
        }
    return dict(sorted(models.items(), key=lambda item: item[0].casefold()))


def write_models(models: dict[str, dict[str, Any]], path: Path) -> None:
    """Writes one line for each model, so that a change of one model is a diff of one line."""
    lines = [
        f"{json.dumps(name)}:{json.dumps(record, separators=(',', ':'), ensure_ascii=False)}"
        for name, record in models.items()
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="directory with _index.json and the config files that it names")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="default: the package's models.json")
    arguments = parser.parse_args()
    models = read_models(arguments.directory)
    write_models(models, arguments.output)
    print(f"{len(models)} models, {arguments.output.stat().st_size:,} bytes: {arguments.output}")


if __name__ == "__main__":
    main()
