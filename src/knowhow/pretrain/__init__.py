"""`knowhow pretrain`: a small base model from text."""

from knowhow.pretrain.flow import pretrain

__all__ = ["pretrain"]
