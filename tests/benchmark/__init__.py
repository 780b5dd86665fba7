"""What a reduction costs and saves, measured against the same model without it."""
