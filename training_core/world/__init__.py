"""A generated world: simulated stories in simple words, questions whose answers follow from them, and their checker.

In reading order: `lexicon` (words), `state` (what is known), `rules` and `effects` (events), `grammar` (wordings),
`realise` and `parse` (text from events and back), `stage` and `plots` (goal stories), `answers` (questions), `scenes`
(short stories of a level), `holdout`, `documents` (what a model is trained on), `checker`, `baselines`,
`minimal_pairs`, and `tasks` (the project's own questions).

**Does not cover**: general language. That a model speaks this world well is no evidence that it speaks English.
"""
