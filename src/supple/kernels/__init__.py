"""Numerical kernels: power iteration, and tensors that lie on several ranks."""
