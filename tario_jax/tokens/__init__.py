"""Windows, bins, the three integers of visibility, and the batch of step t."""
