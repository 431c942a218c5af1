"""Several machines that run together, each recorded into a trace of its own.

Any of the traces replays alone: what the others sent is in it.
"""
