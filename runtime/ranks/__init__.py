"""Several processes train one model: how gradients become one, and who keeps the record."""
