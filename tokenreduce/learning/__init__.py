"""Strategies with parameters of their own: their bases, their gradients, their training."""
