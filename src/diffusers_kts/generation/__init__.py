"""The parts of the batch job ``kts generate``, one idea a file; `diffusers_kts.generate` puts them together.

settings -> prompts -> model -> plan -> (selection) -> media -> formats -> ledger, all through storage.
"""
