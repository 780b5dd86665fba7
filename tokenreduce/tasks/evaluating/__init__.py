"""The parts of `task=evaluate`."""
