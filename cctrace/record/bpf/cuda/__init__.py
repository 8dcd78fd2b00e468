"""CUDA calls: which are probed, how, and what becomes of their records."""
