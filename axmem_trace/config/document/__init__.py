"""The configuration file: its text, its keys and their values, before anything is derived from them."""
