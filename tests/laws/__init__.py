"""The laws, over everything that is registered."""
