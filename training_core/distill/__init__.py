"""Distillation: prompt baking, divergences, LoRA, trajectories and rehearsal data."""
