"""Reports on the sparsity and the multiply-adds of models and saved files."""
