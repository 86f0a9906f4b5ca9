"""Which tokens of which sequences run next. Pure: sequences, block pool, scheduler."""
