"""Floating-point arithmetic that knows no loss."""
