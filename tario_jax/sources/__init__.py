"""What a user has, into a corpus: spots, Xenium, CosMx, whole slides; the registration check."""
