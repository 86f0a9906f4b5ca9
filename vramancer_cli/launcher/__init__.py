"""The door of the one-file program: what kind of program runs here, and how a small launcher becomes the whole one.

`bundle` tells the kinds apart, `payload` finds the packed runtime, `cache` keeps the unpacked ones, `unpacking` and
`fetching` bring one there, `entering` does all of it in order, `handover` turns this process into it. Standard
library, platformdirs and zstandard only: never torch, transformers, a terminal, or a room with a pulse.
"""
