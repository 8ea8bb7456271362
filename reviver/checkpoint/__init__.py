"""Checkpoints on disk: headers, byte ranges, hashes, exact rounding, rewriting. Nothing here imports torch."""
