"""Trained models as one file that other programs run: ONNX, and torch's own exported programs (.pt2)."""
