"""Inside a vision tower: tokens that merge between its layers, and evidence that is read there."""
