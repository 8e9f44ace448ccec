"""A run directory as a page that its owner wants to open: what came of it, and why."""
