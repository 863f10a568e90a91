"""The stages of a build: each composes the layers below into one sealed folder of the run. Only run.py and the CLI import them."""
