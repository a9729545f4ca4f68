"""Numerical kernels: power iteration, and tensors that are sharded over ranks."""
