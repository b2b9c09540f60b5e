"""Datasets and transforms that MMDetection and MMSegmentation lack."""
