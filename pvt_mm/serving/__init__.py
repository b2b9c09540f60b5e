"""Exported models without PyTorch: onnxruntime, NumPy and Pillow alone run them and draw what they predict."""
