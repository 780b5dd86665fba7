"""Hydra configuration of tokenreduce; a package so that `pkg://tokenreduce.conf` resolves."""
