"""H&E encoder, bin encoder, decoder, gene head; the model as a pure function of arrays."""
