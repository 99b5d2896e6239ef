"""Losses through a linear head."""
