"""Heads by name: detectors, segmenters, classifiers."""
