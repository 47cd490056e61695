"""A checkpoint and a section or an image in, gene maps out."""
