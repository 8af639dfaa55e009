"""General utilities that do not depend on Keras: registries, tables, threads, ranking and plots."""
