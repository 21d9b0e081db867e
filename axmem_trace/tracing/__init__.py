"""Record a training step on meta: when each storage is allocated and freed, as on a GPU."""
