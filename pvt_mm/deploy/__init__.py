"""Whole models as ONNX files: export, verification, and weights of 16 or 8 bits."""
