"""A folder a model family; `registry` finds the family of a checkpoint folder."""
