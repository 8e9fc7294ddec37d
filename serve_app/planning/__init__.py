"""Planning: what a request means for its model, and the stages that it needs."""
