"""The public names, the pages, the package and the demo."""
