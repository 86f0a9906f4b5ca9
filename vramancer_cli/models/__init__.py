"""What a model is, as values: facts, sampling, catalog. Pure; never torch, sockets, clocks."""
