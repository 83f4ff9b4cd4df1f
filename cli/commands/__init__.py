"""The verbs, one module each; `gradwarden.cli.app` lists them."""
