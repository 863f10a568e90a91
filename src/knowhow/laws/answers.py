"""What the laws together answer to each of the three questions; a law's name in brackets stands for the law and its verdict."""

ANSWERS: dict[str, str] = {}
