"""The sample detector: scenes, training, publishing and golden predictions."""
