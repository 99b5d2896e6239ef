"""Several devices: a file of tests has a process of its own, with eight of them."""
