"""Base models: from a name in a configuration to the content of a `config.json`. No torch, no transformers here."""

from axmem_trace.catalogue.lookup import find_base_model
from axmem_trace.catalogue.table import CatalogueEntry, list_base_models

__all__ = ["CatalogueEntry", "find_base_model", "list_base_models"]
