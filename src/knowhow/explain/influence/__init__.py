"""Which training rows drove an answer: scores from gradients and curvature, and the retraining that tests them."""
