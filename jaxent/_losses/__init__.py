"""The public dense losses, one file a family, named as the kernels are."""
