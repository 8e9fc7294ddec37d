"""Memory: the budget, what architectures take of it, the plan that follows, and offloading."""
