"""The report as HTML: one fragment with its own style, no script, nothing loaded."""
