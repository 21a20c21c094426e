"""Kernels for GPUs, in Triton, which files called ``kernels`` import: they are loaded only where they run."""
