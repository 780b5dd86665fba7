"""Pictures of reductions, with Pillow and NumPy alone."""

from tokenreduce.viz.overlay import Stage, overlay, stack, strip

__all__ = ["Stage", "overlay", "stack", "strip"]
