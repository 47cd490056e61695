"""Patients in one space: what the model says of their tissue, and what was measured of it, as vectors."""
