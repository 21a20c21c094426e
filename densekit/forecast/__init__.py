"""Before the first step: how much memory, time and disk a run will take, and what would fit."""
