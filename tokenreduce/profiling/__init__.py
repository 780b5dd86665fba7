"""Where a model needs its visual tokens, and a schedule made from that.

    prompts = prompts_of(conversations, Encoder(processor))
    meter = Meter(model, processor, prompts, "pyramid_drop")
    found = sensitivity(meter.measure, layers, keeps)
    candidates(found, meter.prices, budget=0.5)

`task=profile` does all of it, keeps what it has measured, and writes the schedule as an option.
"""

from tokenreduce.data.items import conversation
from tokenreduce.data.rows import alone
from tokenreduce.presets import load_schedule, schedule_of, write_preset
from tokenreduce.profiling.cells import Cell, Cells
from tokenreduce.profiling.meter import Meter
from tokenreduce.profiling.planning import candidates, topped
from tokenreduce.profiling.prices import Prices, Stops
from tokenreduce.profiling.prompts import Prompt, first, prompts_of
from tokenreduce.profiling.refining import refine
from tokenreduce.profiling.sensitivity import Sensitivity, sensitivity

__all__ = [
    "Cell",
    "Cells",
    "Meter",
    "Prices",
    "Prompt",
    "Sensitivity",
    "Stops",
    "alone",
    "candidates",
    "conversation",
    "first",
    "load_schedule",
    "prompts_of",
    "refine",
    "schedule_of",
    "sensitivity",
    "topped",
    "write_preset",
]
