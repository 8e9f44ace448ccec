"""A repository of source code as a source of prompts: read, outlined, split, turned into tasks, graded by running."""
