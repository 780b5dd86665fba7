"""What a schedule costs, from a model's configuration alone: FLOPs, MACs, cache, activations.

No weights, no torch. `cost` is about the decoder layers, by any of the published conventions;
`model_cost` adds vision tower, connector, LM head and the choice of tokens.
"""

from __future__ import annotations

from tokenreduce.cost.activations import Activations, activations, logits_bytes
from tokenreduce.cost.connector import (
    Connector,
    Projector,
    Resampler,
    Step,
    connector_of,
    connectors,
)
from tokenreduce.cost.conventions import CONVENTIONS, Convention
from tokenreduce.cost.model import ModelCost, model_cost
from tokenreduce.cost.pictures import grids_of
from tokenreduce.cost.prefill import (
    Cost,
    DecoderShape,
    average_tokens,
    cost,
    cost_of,
    head_macs,
    kv_bytes,
    macs,
    selection_macs,
    shape_of,
    tokens_per_layer,
)
from tokenreduce.cost.tower_sizes import Grid, TowerShape, tower_macs, tower_of, towers

__all__ = [
    "CONVENTIONS", "Activations", "Connector", "Convention", "Cost", "DecoderShape", "Grid",
    "ModelCost", "Projector", "Resampler", "Step", "TowerShape", "activations", "average_tokens",
    "connector_of", "connectors", "cost", "cost_of", "grids_of", "head_macs", "kv_bytes",
    "logits_bytes", "macs", "model_cost", "selection_macs", "shape_of", "tokens_per_layer",
    "tower_macs", "tower_of", "towers",
]  # fmt: skip
