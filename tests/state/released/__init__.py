"""Files that released versions have written, and what was done to write them (`make.py`)."""
