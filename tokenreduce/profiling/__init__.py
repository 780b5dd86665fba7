"""Where a model needs its visual tokens, and a schedule made from that.

    prompts = prompts_of(conversations, Encoder(processor))
    meter = ScheduleEvaluator(model, processor, prompts, "pyramid_drop")
    found = sensitivity(meter.measure, layers, keeps)
    candidates(found, meter.prices, budget=0.5)

`task=profile` does all of it, keeps what it has measured, and writes the schedule as an option.
"""

import sys
from typing import Any

from tokenreduce.data.items import conversation
from tokenreduce.data.rows import alone
from tokenreduce.errors import read_renamed
from tokenreduce.presets import load_schedule, schedule_of, write_preset
from tokenreduce.profiling.cells import Cells, Measurement
from tokenreduce.profiling.meter import ScheduleEvaluator
from tokenreduce.profiling.planning import candidates, topped
from tokenreduce.profiling.prices import CostTable, Stops
from tokenreduce.profiling.prompts import Prompt, first, prompts_of
from tokenreduce.profiling.refining import refine
from tokenreduce.profiling.sensitivity import Sensitivity, sensitivity

EARLIER = {"Cell": "Measurement", "Meter": "ScheduleEvaluator", "Prices": "CostTable"}
"""Names of version 0.1, which still work with a warning."""

__all__ = [
    "Cells",
    "CostTable",
    "Measurement",
    "Prompt",
    "ScheduleEvaluator",
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


def __getattr__(name: str) -> Any:
    return read_renamed(sys.modules[__name__], name, EARLIER)
