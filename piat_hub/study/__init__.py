"""The paper's comparisons as sweeps: every member is a run directory that train and evaluate make; one table ends it."""
