"""Runs models on a CUDA device that a CPU build of PyTorch is told it has, or on a GPU where there is one."""
