"""Differential privacy on routed layers: sampling, clipping and noise, accounting, budgets."""
