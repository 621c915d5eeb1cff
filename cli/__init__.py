"""The command line of run.py, and the environment that it brings along: standard library only to begin with."""
