"""Which samples make a batch, how they are padded to one, and the processes that make them."""
