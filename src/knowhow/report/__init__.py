"""The report: a run folder in, one self-contained page and the terminal's tables out."""
