"""An attack on governed training: does the model know which patients it was trained on?"""
