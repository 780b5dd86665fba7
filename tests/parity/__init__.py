"""Recorded parity: the outputs of the original implementations, reproduced by this engine."""
