"""The parts of `task=solve`."""
