"""What a model is, as values: facts, tensor layout, catalog. Pure; never torch, sockets, clocks."""
