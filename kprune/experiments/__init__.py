"""Everything that trains or evaluates a model more than once: searches, sweeps, scans."""
