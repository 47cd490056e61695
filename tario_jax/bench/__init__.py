"""`tario bench …`: a figure beside its peers, from one run."""
