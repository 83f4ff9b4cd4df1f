"""Published results of gradient routing, repeated with policies in place of hand-written masks."""
