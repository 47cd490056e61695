"""Frozen H&E encoders: what they are (cards), how they are run, and their features of a corpus."""
