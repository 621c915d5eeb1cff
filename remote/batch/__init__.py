"""`run.py queue`: a workflow for many pictures, which goes on where it ended."""
