"""`tario serve`: a bundle behind HTTP."""
