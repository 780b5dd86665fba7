"""The parts of `task=benchmark`, which the suite in `tests/benchmark` measures with as well."""
