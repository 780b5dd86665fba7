"""What a reduction saves in time and memory, measured in turn against the unreduced model."""
