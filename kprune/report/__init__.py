"""What is left of a model: zeros, multiply-adds, saved files."""
