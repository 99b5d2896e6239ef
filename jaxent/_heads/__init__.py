"""Losses through a linear head, which never hold all of the logits."""
