"""axolotl's own kernels and patches."""
