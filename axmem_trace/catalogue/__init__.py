"""Base models: finds the content of `config.json` for the name in a configuration. Without torch and transformers."""

from axmem_trace.catalogue.lookup import find_base_model
from axmem_trace.catalogue.table import CatalogueEntry, list_base_models

__all__ = ["CatalogueEntry", "find_base_model", "list_base_models"]
