"""Single families: what is particular to each; what all owe is in conformance."""
