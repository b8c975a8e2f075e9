"""What seeing the noise costs: models, rows, turns, memory and tables of `recipes/measure.py`."""
