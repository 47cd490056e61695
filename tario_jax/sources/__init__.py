"""What a user has, into a corpus: spots, Xenium, CosMx; the registration check."""
