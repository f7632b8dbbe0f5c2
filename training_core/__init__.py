"""The science of Agent Forge: models, training, evaluation and one package for each phase.

It depends on no orchestrator, tracker, container engine or HTTP client.
"""
