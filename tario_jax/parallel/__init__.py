"""The mesh, and the one table from logical axes of parameters to mesh axes."""
