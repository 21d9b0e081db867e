"""Mixture of experts: the routing of tokens, and the kernels that compute the experts."""
