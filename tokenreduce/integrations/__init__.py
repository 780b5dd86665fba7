"""Integrations with other libraries; each is imported by name where it is used."""
