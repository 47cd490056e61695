"""A checkpoint that leaves the building: a bundle of an exported function, its weights, and what they are."""
