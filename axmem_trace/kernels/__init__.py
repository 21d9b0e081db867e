"""Where meta differs from a GPU: one rule for each such kernel, and what is installed around a trace."""
