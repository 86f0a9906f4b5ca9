"""`make bench`: this program beside llama.cpp (its RPC too) and transformers, on one machine, in one run.

Never imports tests.
"""
