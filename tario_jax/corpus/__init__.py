"""The store: layout, write, read, split, check. Everything that is read from it has been sealed."""
