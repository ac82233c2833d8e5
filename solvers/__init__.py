"""Simulators as black boxes: numpy in, numpy out; no torch and nothing of the library."""
