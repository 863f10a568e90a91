"""`knowhow study`: a training run watched closely, and the story of its life."""
