"""Where meta lies: one rule for each kernel that a GPU runs otherwise, and what is installed around a trace."""
