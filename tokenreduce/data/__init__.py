"""The rendered visual-question task (`data=shapes`): unlimited samples from a seed."""

from tokenreduce.data.questions import TYPES, Question
from tokenreduce.data.shapes import Item, Scene, Word
from tokenreduce.data.stream import SPLITS, Sample, sample

__all__ = ["SPLITS", "TYPES", "Item", "Question", "Sample", "Scene", "Word", "sample"]
