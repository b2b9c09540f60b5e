"""Pictures of what a run did and of what a model sees. Matplotlib draws them, without a window."""
