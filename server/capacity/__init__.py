"""What a model needs of a machine, and what it will deliver there: arithmetic alone, and all of it *predicted*."""
