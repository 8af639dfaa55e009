"""Experiments that train or evaluate a model more than once, such as searches, sweeps and scans."""
