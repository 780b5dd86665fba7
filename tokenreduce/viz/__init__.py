"""Pictures of reductions, with Pillow and NumPy alone, and a page around them."""

from tokenreduce.viz.overlay import Stage, heat, overlay, stack, strip
from tokenreduce.viz.page import Look, write_page
from tokenreduce.viz.panels import checked_size, write_panels
from tokenreduce.viz.scene import Scene, filmstrip, scenes

__all__ = [
    "Look",
    "Scene",
    "Stage",
    "checked_size",
    "filmstrip",
    "heat",
    "overlay",
    "scenes",
    "stack",
    "strip",
    "write_page",
    "write_panels",
]
