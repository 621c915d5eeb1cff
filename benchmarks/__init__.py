"""Measurements; each writes its figures as JSON into `results`: `python run.py bench NAME`."""
