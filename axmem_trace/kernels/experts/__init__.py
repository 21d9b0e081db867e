"""Mixture of experts: where tokens are routed to, and the kernels that compute the experts."""
