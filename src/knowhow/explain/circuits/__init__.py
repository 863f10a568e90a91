"""The circuit behind an answer: edges scored, circuits run exactly, curves of size against faithfulness, and direct paths from head to head."""
