"""Smaller bins, single cells, and shifted truth: what finer readouts say, and what registration costs."""
