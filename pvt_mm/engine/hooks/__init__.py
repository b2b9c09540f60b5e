"""Hooks: atomic checkpoints, steps with NaN/Inf, float32 for mmcv's operators, PyTorch's switches, torch.compile, early stopping."""
