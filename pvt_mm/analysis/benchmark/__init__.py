"""Time, memory and arithmetic rate of models side by side, as tools/benchmark.py and ``make bench`` measure them."""
