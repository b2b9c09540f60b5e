"""Figures and tables of models, runs and data. Matplotlib draws without a window."""
