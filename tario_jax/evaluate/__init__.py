"""How well a model predicts held-out sections, beside everything that it must beat."""
