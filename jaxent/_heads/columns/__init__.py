"""The column sweep: softmax statistics of a linear head, a block of the vocabulary at a time."""
