"""What the command line can do: tasks by name, each imported when it runs.

A task takes the composed configuration and the folder of the run, and returns the numbers that go
into `result.json`. A plug-in adds one by registering a function, or a `Task` where it has more to
say or should not be imported before it runs:

    tasks.register("count")(Task("my_package.count:count", least={"rows": 1}))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenreduce.registry import Registry

Run = Callable[[Any, Path], dict[str, Any]]


@dataclass(frozen=True, repr=False)
class Task:
    """A task, and what is known of it before it is imported.

    Attributes:
        run: the function, or where it is: `"package.module:function"`.
        least: of options that are whole numbers, the least that each may be.
        needs: packages that it cannot do without, each with what `pip install` brings it by.
        resumes: whether it finds in its folder what an earlier run has done.
    """

    run: Run | str
    least: Mapping[str, int] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    resumes: bool = False

    def __call__(self, config: Any, output: Path) -> dict[str, Any]:
        """Runs it; imports its module first.

        config: the composed configuration.
        output: the folder of the run.
        """
        run = self.run
        if isinstance(run, str):
            module, _, name = run.partition(":")
            run = getattr(importlib.import_module(module), name)
        return run(config, output)

    def __repr__(self) -> str:
        if isinstance(self.run, str):
            return self.run
        return f"{self.run.__module__}:{self.run.__qualname__}"


tasks: Registry[Task | Run] = Registry("task")

tasks.register("generate")(Task("tokenreduce.tasks.generate:generate", least={"runs": 0}))
tasks.register("evaluate")(Task("tokenreduce.tasks.evaluate:evaluate", resumes=True))
tasks.register("train")(
    Task(
        "tokenreduce.tasks.train:train",
        needs={"accelerate": "tokenreduce[train]"},
        resumes=True,
    )
)
tasks.register("profile")(
    Task(
        "tokenreduce.tasks.profile:profile",
        least={
            **dict.fromkeys(("samples", "tokens", "batch", "draws", "grid", "candidates"), 1),
            "trials": 0,
        },
        resumes=True,
    )
)
tasks.register("solve")(
    Task("tokenreduce.tasks.solve:solve", least={"text": 0, "rounds": 1, "tries": 0})
)
tasks.register("benchmark")(Task("tokenreduce.tasks.benchmark:benchmark"))


def find(name: str) -> Task:
    """The task called `name`.

    Raises:
        KeyError: there is none; the known ones are listed.
    """
    found = tasks[name]
    return found if isinstance(found, Task) else Task(found)
