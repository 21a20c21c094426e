"""Objects in, numbers out: the training step, evaluation, checkpoints, records. No config here."""
