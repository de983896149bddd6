"""CTR models, one file a model."""
