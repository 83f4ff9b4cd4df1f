"""Kernels in C for what clipping costs on a CPU. Optional: without them, torch and numpy do the same."""
