"""Attention by visibility, the count likelihood, rotary places. Imports nothing of the project but config."""
