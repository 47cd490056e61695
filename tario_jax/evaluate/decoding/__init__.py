"""Generation in steps and prediction from what is measured, beside one shot from the H&E."""
