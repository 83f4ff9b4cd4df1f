"""The report of a run: what its ledger adds up to, as one page that needs nothing beside it.

No torch. The page is made with Jinja2 (`gradwarden[report]`)."""
