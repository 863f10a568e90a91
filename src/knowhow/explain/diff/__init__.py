"""What changed between two models of one architecture, part by part: by weights, by putting parts back, by head roles, by circuits."""
