"""The rendered visual-question task (`data=shapes`): unlimited samples from a seed."""

from tokenreduce.data.questions import TYPES, Question
from tokenreduce.data.samples import SPLITS, Sample, sample
from tokenreduce.data.shapes import Item, Scene, Word

__all__ = ["SPLITS", "TYPES", "Item", "Question", "Sample", "Scene", "Word", "sample"]
