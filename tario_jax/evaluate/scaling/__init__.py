"""Runs of a sweep side by side: what more patients, parameters, context, resolution or compute bring."""
