"""Doors to other libraries; each is imported by name, by those who use it."""
