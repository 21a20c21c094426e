"""Learning: the step, its optimiser and schedule, when to evaluate and stop, and the folder that a run leaves."""
