"""From a target (tokens, FLOPs, bytes, milliseconds) to the schedule that keeps the most."""
