"""The parts of ``kts tune``: the search space, the objectives, the shared study, halving, and what may be recommended."""
