"""The live screen of a run: what happened, what is to be seen, how it is drawn, and how it is read from a directory."""
