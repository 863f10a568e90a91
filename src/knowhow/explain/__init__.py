"""Where a skill lives in a model and what an answer rests on, each claim checked by intervention."""
