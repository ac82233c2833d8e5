"""Certified denoised smoothing of a classifier that can only be asked."""
