"""Hooks of training: checkpoints, NaN/Inf, float32 for mmcv's operators, PyTorch's switches, compiling, stopping."""
