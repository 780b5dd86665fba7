"""Trains the embedded model of tokenreduce from nothing: a task and a kind of data."""

from tokenreduce.tasks import Task, tasks
from tokenreduce_tiny.lessons import Lessons

__all__ = ["Lessons"]

tasks.register("pretrain")(
    Task(
        "tokenreduce_tiny.pretrain:pretrain",
        least={"threads": 1, "log_every": 1, "save_every": 1},
        needs={"accelerate": "tokenreduce[train]"},
        resumes=True,
    )
)
