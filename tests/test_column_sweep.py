"""The column sweep."""
