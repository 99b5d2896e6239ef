"""What `python -m jaxent` runs: a language model of Python's own standard library."""
