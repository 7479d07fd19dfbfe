"""An attack suite over a split: which images a model still classifies correctly, and what that says about it."""
