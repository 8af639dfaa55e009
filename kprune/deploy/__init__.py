"""Deployment: a trained sparse model, shrunk and exported."""
