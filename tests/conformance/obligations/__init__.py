"""What losses are held to: a file for each kind of obligation."""
