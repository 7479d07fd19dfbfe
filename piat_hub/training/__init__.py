"""The engine, and what surrounds it: set-up, the run directory, resume, guards, averages of weights."""
