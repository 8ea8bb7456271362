"""Spectral bases, the filter and drift: pure mathematics on tensors, no files and no model."""
