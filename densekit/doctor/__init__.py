"""Finds defects in data sets before a training run does, explains them, and corrects what can be corrected."""
