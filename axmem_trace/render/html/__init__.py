"""The report as HTML: a fragment for a notebook cell (`page`), and a whole page with a script (`document`). No requests."""
