"""tokenreduce: drop, merge or pool the redundant visual tokens of vision-language models."""

__version__ = "0.1.0"
