"""Helpers for all other packages: errors, atomic writes, text."""
